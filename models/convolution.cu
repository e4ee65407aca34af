/* A convolution in half precision for GPUs with tensor cores (compute capability 8.0 and later), with bias, sum and
PReLU fused. cuda_convolution.py compiles it for the device that it runs on, with the sizes of a tile as macros:

    SIDE, STRIDE, UP   3 1 1 or 3 2 1: convolutions with a padding of 1. 2 1 2: a transposed one with 4 x 4 taps and
                       stride 2: its pixels of even and odd rows and columns are four convolutions of 2 x 2 taps each.
    WARPS, FRAGMENTS   warps of a block; each computes FRAGMENTS times 16 pixels of a row.
    ACROSS             columns of a tile, 16 or 32.
    GROUPS             output channels of a tile, in eights.
    STAGES, BLOCKS     steps of 16 input channels in shared memory at a time; blocks per multiprocessor.
    BFLOAT16           defined for bfloat16; otherwise float16.

A block computes one tile: 16 channels at a time of its pixels and those around them are copied to shared memory, with
their weights, while the 16 before are multiplied. All taps read the same copy there, shifted.

Tensors are dense, channels last. Channels are multiples of 8, and so are pitch and `last`. */

#define TAPS (SIDE * SIDE)
#define THREADS (32 * WARPS)
#define TALL (WARPS * FRAGMENTS * 16 / ACROSS)
#define COLUMNS (((ACROSS - 1) * STRIDE + SIDE + 7) / 8 * 8) /* in eights, so that all rows are laid out alike: `place` */
#define AROUND (((TALL - 1) * STRIDE + SIDE) * COLUMNS)
#define OUTPUTS (8 * GROUPS)
#define PER_ROW (ACROSS / 16)                            /* fragments in a row of a tile */
#define HIGH ((FRAGMENTS + PER_ROW - 1) / PER_ROW)       /* rows of a warp's fragments */
#define WIDE (FRAGMENTS < PER_ROW ? FRAGMENTS : PER_ROW) /* fragments in each of them */
#define READ ((HIGH - 1) * STRIDE + SIDE)                /* rows of pixels that they read */
#define UNITS (2 * AROUND)                               /* of 16 bytes: 8 channels of a pixel */
#define WEIGHTS (2 * TAPS * OUTPUTS)                     /* likewise, of one step of 16 channels */
#define STAGE (16 * (UNITS + WEIGHTS))
#define LOADS ((UNITS + THREADS - 1) / THREADS)

#ifndef EMULATED /* tests/emulated_gpu.cpp has these for the CPU */
#ifdef BFLOAT16
#define TYPE "bf16"
#else
#define TYPE "f16"
#endif

typedef unsigned short Half;

__device__ __forceinline__ unsigned address_of(const void* shared) { return (unsigned)__cvta_generic_to_shared(shared); }

/* 16 bytes from global to shared memory, or zeros. */
__device__ __forceinline__ void copy(unsigned to, const Half* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0));
}

__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;"); }

/* Waits until all but the last `pending` groups of copies have arrived. */
template <int pending>
__device__ __forceinline__ void arrive() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

/* Four matrices of 8 rows of 16 bytes, whose addresses the lanes hold: 0-7 those of the first, and so on. */
__device__ __forceinline__ void matrices(unsigned (&r)[4], unsigned at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}

__device__ __forceinline__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE
                 ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ unsigned pack(float low, float high) {
    unsigned both;
    asm("cvt.rn." TYPE "x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

__device__ __forceinline__ float number(unsigned bits) {
#ifdef BFLOAT16
    return __uint_as_float(bits << 16);
#else
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((Half)bits));
    return value;
#endif
}

__device__ __forceinline__ unsigned from_neighbour(unsigned value) { return __shfl_xor_sync(0xffffffff, value, 1); }
#endif

/* Where the lower or higher 8 channels of a pixel lie: those of 8 pixels side by side are in different banks. */
__device__ __forceinline__ int place(int pixel, int high) { return 32 * pixel + 16 * (high ^ (pixel >> 2 & 1)); }

/* x: (B, height, width, channels). rows, columns: of the output, or of one of its four parts where UP is 2.
weight: for each part, OUTPUTS outputs and 16 channels, (TAPS, OUTPUTS, 16), laid out like `place`. bias, slope: padded
to a multiple of OUTPUTS; slope: NULL without PReLU. add: laid out like the output, or NULL. out: pixels have `pitch`
channels. The last `last` of the outputs are written to `tail` instead, whose pixels have `last` channels. */
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) convolve(
    const Half* x, const Half* weight, const float* bias, const float* slope, const Half* add, Half* out, Half* tail,
    int height, int width, int rows, int columns, int channels, int outputs, int pitch, int last) {
    extern __shared__ uint4 shared[];
    const unsigned memory = address_of(shared);
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const int across = (columns + ACROSS - 1) / ACROSS, steps = (channels + 15) / 16;
    const int row = blockIdx.x / across * TALL, column = blockIdx.x % across * ACROSS;
    const int image = blockIdx.z / (UP * UP), part = blockIdx.z % (UP * UP), odd_y = part / UP, odd_x = part % UP;
    const int first = blockIdx.y * OUTPUTS;
    x += (size_t)image * height * width * channels;
    weight += (size_t)(part * gridDim.y + blockIdx.y) * steps * WEIGHTS * 8;

    int source[LOADS];
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        const int pixel = (thread + i * THREADS) / 2;
        const int y = row * STRIDE - 1 + odd_y + pixel / COLUMNS, z = column * STRIDE - 1 + odd_x + pixel % COLUMNS;
        const bool inside = 0 <= y && y < height && 0 <= z && z < width && pixel % COLUMNS < (ACROSS - 1) * STRIDE + SIDE;
        source[i] = inside ? (y * width + z) * channels + 8 * (thread % 2) : -1;
    }
    auto load = [&](int step) {
        const unsigned stage = memory + step % STAGES * STAGE;
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            const int unit = thread + i * THREADS;
            const bool there = source[i] >= 0 && 16 * step + 8 * (unit % 2) < channels;
            if (unit < UNITS) copy(stage + place(unit / 2, unit % 2), x + (there ? source[i] + 16 * step : 0), there);
        }
        const Half* from = weight + (size_t)step * WEIGHTS * 8;
        for (int unit = thread; unit < WEIGHTS; unit += THREADS)
            copy(stage + 16 * (UNITS + unit), from + 8 * unit, true);
    };

    for (int step = 0; step < STAGES - 1; step++) {
        if (step < steps) load(step);
        commit();
    }

    /* A lane holds two rows of a fragment: the pixel of one of them; -1 outside, which is computed, but not written. */
    auto pixel = [&](int f, int below) {
        const int fragment = warp * FRAGMENTS + f, r = row + fragment / PER_ROW;
        const int c = column + fragment % PER_ROW * 16 + lane / 4 + 8 * below;
        return r < rows && c < columns ? (r * UP + odd_y) * columns * UP + c * UP + odd_x : -1;
    };
    const size_t before = (size_t)image * rows * UP * columns * UP;
    add = add ? add + before * outputs : add, out += before * pitch, tail += before * last;

    /* A lane has 2 channels of each group. Their sums begin with the bias and what is added, so that all of it is
       loaded at once, while the first pixels are being copied. */
    float sums[FRAGMENTS][GROUPS][4];
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        const int channel = first + 8 * g + 2 * (lane % 4);
        const float2 more = *(const float2*)(bias + channel);
#pragma unroll
        for (int f = 0; f < FRAGMENTS; f++)
#pragma unroll
            for (int below = 0; below < 2; below++) {
                unsigned two = 0;
                const int at = pixel(f, below);
                if (add && at >= 0 && channel < outputs) two = *(const unsigned*)(add + (size_t)at * outputs + channel);
                sums[f][g][2 * below] = more.x + number(two & 0xffff);
                sums[f][g][2 * below + 1] = more.y + number(two >> 16);
            }
    }

    /* Where a lane reads: for each column of taps, a row of the first fragment's pixels; of the weights, a channel. */
    const int begin = warp * FRAGMENTS / PER_ROW * STRIDE * COLUMNS + (warp * FRAGMENTS % PER_ROW * 16 + lane % 16) * STRIDE;
    int of_pixels[SIDE];
#pragma unroll
    for (int k = 0; k < SIDE; k++) of_pixels[k] = place(begin + k, lane / 16);
    const int of_weights = 16 * UNITS + place(lane % 8 + lane / 16 * 8, lane / 8 % 2);

    for (int step = 0; step < steps; step++) {
        arrive<STAGES - 2>();
        __syncthreads();
        if (step + STAGES - 1 < steps) load(step + STAGES - 1);
        commit();
        const unsigned stage = memory + step % STAGES * STAGE;
        /* Column by column of the taps: pixels below one another are read once, for all taps of the column. */
#pragma unroll
        for (int k = 0; k < SIDE; k++) {
            unsigned around[READ][WIDE][4];
#pragma unroll
            for (int y = 0; y < READ; y++)
#pragma unroll
                for (int f = 0; f < WIDE; f++)
                    matrices(around[y][f], stage + of_pixels[k] + 32 * (y * COLUMNS + 16 * STRIDE * f));
#pragma unroll
            for (int y = 0; y < SIDE; y++)
#pragma unroll
                for (int g = 0; g < GROUPS; g += 2) {
                    unsigned w[4]; /* of an odd number of groups the last read goes beyond them, unused: see SPARE */
                    matrices(w, stage + of_weights + 32 * ((y * SIDE + k) * OUTPUTS + 8 * g));
#pragma unroll
                    for (int f = 0; f < FRAGMENTS; f++) {
                        const unsigned(&pixels)[4] = around[f / PER_ROW * STRIDE + y][f % PER_ROW];
                        multiply(sums[f][g], pixels, w[0], w[1]);
                        if (g + 1 < GROUPS) multiply(sums[f][g + 1], pixels, w[2], w[3]);
                    }
                }
        }
    }

    /* Neighbouring lanes swap halves, so that 32 bytes of a pixel are written at a time. */
#pragma unroll
    for (int g = 0; g < GROUPS; g += 2) {
        if (first + 8 * g >= outputs) break;
        float2 factor[2];
#pragma unroll
        for (int k = 0; k < 2; k++) {
            factor[k].x = factor[k].y = 1;
            if (slope) factor[k] = *(const float2*)(slope + first + 8 * (g + (g + k < GROUPS ? k : 0)) + 2 * (lane % 4));
        }
        const int odd = lane % 2, mine = first + 8 * (g + odd) + 4 * (lane / 2 % 2), over = mine - (outputs - last);
        const bool written = mine < outputs && g + odd < GROUPS;
#pragma unroll
        for (int f = 0; f < FRAGMENTS; f++)
#pragma unroll
            for (int below = 0; below < 2; below++) {
                unsigned both[2] = {0, 0};
#pragma unroll
                for (int k = 0; k < 2 && g + k < GROUPS; k++) {
                    const float u = sums[f][g + k][2 * below], v = sums[f][g + k][2 * below + 1];
                    both[k] = pack(u > 0 ? u : u * factor[k].x, v > 0 ? v : v * factor[k].y);
                }
                const unsigned theirs = from_neighbour(odd ? both[0] : both[1]);
                uint2 four;
                four.x = odd ? theirs : both[0], four.y = odd ? both[1] : theirs;
                const int at = pixel(f, below);
                Half* const to = over < 0 ? out + (size_t)at * pitch + mine : tail + (size_t)at * last + over;
                if (at >= 0 && written) *(uint2*)to = four;
            }
    }
}
