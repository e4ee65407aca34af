/* models/convolution.cu on a CPU: the threads of a block take turns, up to where they wait for each other. SOURCE: the
file; SHARED: bytes of shared memory; and what cuda_convolution.py defines. */

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <ucontext.h>
#include <vector>

#define EMULATED
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__

typedef unsigned short Half;
struct Index { int x, y, z; };
struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };

static Index threadIdx, blockIdx, gridDim;
uint4 shared[(SHARED + 15) / 16];
static char* const memory = (char*)shared;

static std::vector<ucontext_t> threads;
static std::vector<std::vector<char>> posted; /* what each thread shows to those of its warp */
static ucontext_t scheduler;
static int now;

/* After it all threads have come as far as this one. */
static void __syncthreads() { swapcontext(&threads[now], &scheduler); }

template <class T>
static void post(const T& value) {
    posted[now].assign((const char*)&value, (const char*)&value + sizeof(T));
    __syncthreads();
}

template <class T>
static T of(int lane) {
    T value;
    std::memcpy(&value, posted[now / 32 * 32 + lane].data(), sizeof(T));
    return value;
}

static unsigned address_of(const void* pointer) { return (const char*)pointer - memory; }

static void copy(unsigned to, const Half* from, bool there) {
    if (there)
        std::memcpy(memory + to, from, 16);
    else
        std::memset(memory + to, 0, 16);
}

static void commit() {}

template <int pending>
static void arrive() {}

static void matrices(unsigned (&r)[4], unsigned at) {
    post(at);
    for (int k = 0; k < 4; k++) std::memcpy(&r[k], memory + of<unsigned>(8 * k + now % 32 / 4) + now % 4 * 4, 4);
    __syncthreads();
}

static float number(unsigned bits) {
#ifdef BFLOAT16
    bits <<= 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
#else
    const Half half = bits;
    _Float16 value;
    std::memcpy(&value, &half, 2);
    return value;
#endif
}

static unsigned rounded(float value) {
#ifdef BFLOAT16
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
#else
    const _Float16 half = value;
    Half bits;
    std::memcpy(&bits, &half, 2);
    return bits;
#endif
}

static unsigned pack(float low, float high) { return rounded(low) | rounded(high) << 16; }

struct Operands { unsigned a[4], b[2]; };

/* c += A B, of 16 x 16 and 16 x 8 values, as PTX lays out those of mma.m16n8k16 among the lanes. */
static void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    post(Operands{{a[0], a[1], a[2], a[3]}, {b0, b1}});
    for (int k = 0; k < 4; k++) {
        const int row = now % 32 / 4 + 8 * (k / 2), column = now % 4 * 2 + k % 2;
        for (int j = 0; j < 16; j++) {
            const unsigned x = of<Operands>(row % 8 * 4 + j % 8 / 2).a[row / 8 + j / 8 * 2] >> 16 * (j % 2);
            const unsigned y = of<Operands>(column * 4 + j % 8 / 2).b[j / 8] >> 16 * (j % 2);
            c[k] += number(x & 0xffff) * number(y & 0xffff);
        }
    }
    __syncthreads();
}

static unsigned from_neighbour(unsigned value) {
    post(value);
    const unsigned theirs = of<unsigned>(now % 32 ^ 1);
    __syncthreads();
    return theirs;
}

#include SOURCE

static std::function<void()> kernel;
static int ended;

static void begin() {
    kernel();
    ended++;
}

/* grid: blocks in x, y and z; p, n: the kernel's pointers and numbers. Blocks run one after the other. */
extern "C" void run(const int* grid, void** p, const int* n) {
    kernel = [=] {
        convolve((const Half*)p[0], (const Half*)p[1], (const float*)p[2], (const float*)p[3], (const Half*)p[4],
                 (Half*)p[5], (Half*)p[6], n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7]);
    };
    gridDim = {grid[0], grid[1], grid[2]};
    threads.resize(THREADS), posted.resize(THREADS);
    std::vector<std::vector<char>> stacks(THREADS, std::vector<char>(1 << 16));
    for (int block = 0; block < grid[0] * grid[1] * grid[2]; block++) {
        blockIdx = {block % grid[0], block / grid[0] % grid[1], block / grid[0] / grid[1]};
        std::memset(shared, 0xff, sizeof(shared)); /* no numbers: what is used must have been written */
        for (int k = 0; k < THREADS; k++) {
            getcontext(&threads[k]);
            threads[k].uc_stack.ss_sp = stacks[k].data(), threads[k].uc_stack.ss_size = stacks[k].size();
            threads[k].uc_link = &scheduler;
            makecontext(&threads[k], begin, 0);
        }
        for (ended = 0; ended < THREADS;) {
            const int before = ended;
            for (now = 0; now < THREADS; now++) threadIdx.x = now, swapcontext(&scheduler, &threads[now]);
            if (ended != before && ended != THREADS) std::abort(); /* some are over where others wait for them */
        }
    }
}
