/* The operations between the convolutions, on the CPU: see kernels.py for what each function computes; then, for
   training, the gradients of PReLU (layers.py) and the census distance (losses/terms.py).

   Tensors are channels-last and dense, images planar. `value` is bfloat16, or float with -DFLOAT32. Threads divide the
   work by rows; arithmetic is in float. A NaN coordinate becomes 0, so that nothing is read out of bounds. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define PIXELS 64 /* processed as one run of values */
#define RUN 16    /* the same where each value of a run has a sum of its own */
#define BLOCK 1024

#ifdef FLOAT32
typedef float value;
static inline float get(value v) { return v; }
static inline value put(float f) { return f; }
#else
typedef uint16_t value;
static inline float get(value v) {
    uint32_t bits = (uint32_t)v << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
static inline value put(float f) { /* to the nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
#endif

static inline float clamp(float x, float most) {
    x = x > 0 ? x : 0;
    return x < most ? x : most;
}

/* The two rows (or columns) from which a line at twice the size is interpolated, and the weight of the second. */
static inline void halves(long line, long size, long *a, long *b, float *weight) {
    *a = line % 2 ? line / 2 : line / 2 - (line > 0);
    *b = line % 2 ? line / 2 + (line / 2 + 1 < size) : line / 2;
    *weight = line % 2 ? 0.25f : 0.75f;
}

/* One row of answer + 2 * the coarse flow at twice its size; flow: the first 4 of `apart` floats per pixel. */
static inline void flow_row(float *flow, long apart, const value *answer, long stride, long skip, const float *coarse,
                            long row, long height, long width) {
    long a, b, above, below;
    float wx, wy;
    if (coarse) halves(row, height / 2, &above, &below, &wy);
    for (long x = 0; x < width; x++) {
        /* With `skip`, the four pixels of a 2x2 square lie side by side in one wide pixel of half the size. */
        const value *step = skip ? answer + (x / 2) * stride + (x % 2) * skip : answer + x * stride;
        if (coarse) halves(x, width / 2, &a, &b, &wx);
        for (int k = 0; k < 4; k++) {
            float up = 0;
            if (coarse) {
                const float *p = coarse + above * (width / 2) * 4 + k, *q = coarse + below * (width / 2) * 4 + k;
                up = (1 - wy) * ((1 - wx) * p[4 * a] + wx * p[4 * b]) + wy * ((1 - wx) * q[4 * a] + wx * q[4 * b]);
            }
            flow[apart * x + k] = get(step[k]) + 2 * up;
        }
    }
}

static inline void bend(const value *in, const value *add, const float *slope, value *out, long count) {
#pragma omp simd /* in and out are the same or do not overlap, which the compiler cannot know */
    for (long i = 0; i < count; i++) {
        float v = add ? get(in[i]) + get(add[i]) : get(in[i]);
        out[i] = put(v > 0 ? v : v * slope[i]);
    }
}

static void repeat(const float *slope, long channels, long pixels, float *slopes) {
    for (long p = 0; p < pixels; p++) memcpy(slopes + p * channels, slope, channels * sizeof(float));
}

void prelu(const value *in, const value *add, const float *slope, value *out, long out_stride, value *tail,
           long tail_width, long pixels, long channels, int threads) {
    float slopes[PIXELS * channels]; /* repeated over a run of values, so that one loop covers it */
    repeat(slope, channels, PIXELS, slopes);
#pragma omp parallel for num_threads(threads)
    for (long first = 0; first < pixels; first += PIXELS) {
        long count = pixels - first < PIXELS ? pixels - first : PIXELS;
        const value *x = in + first * channels, *more = add ? add + first * channels : 0;
        value *y = out + first * out_stride;
        if (out_stride == channels && add)
            bend(x, more, slopes, y, count * channels);
        else if (out_stride == channels)
            bend(x, 0, slopes, y, count * channels);
        else
            for (long p = 0; p < count; p++)
                bend(x + p * channels, more ? more + p * channels : 0, slopes, y + p * out_stride, channels);
        for (long p = 0; tail && p < count; p++)
            memcpy(tail + (first + p) * tail_width, y + p * out_stride + channels - tail_width, tail_width * sizeof(value));
    }
}

static inline void sample(value *restrict out, const value *restrict f, float x, float y, long height, long width,
                          long channels) {
    x = clamp(x, width - 1);
    y = clamp(y, height - 1);
    long left = (long)x, top = (long)y;
    long right = left + (left + 1 < width), bottom = top + (top + 1 < height);
    float wx = x - left, wy = y - top;
    const value *a = f + (top * width + left) * channels, *b = f + (top * width + right) * channels;
    const value *c = f + (bottom * width + left) * channels, *d = f + (bottom * width + right) * channels;
#pragma omp simd
    for (long k = 0; k < channels; k++)
        out[k] = put((1 - wy) * ((1 - wx) * get(a[k]) + wx * get(b[k])) + wy * ((1 - wx) * get(c[k]) + wx * get(d[k])));
}

void step(const value *answer, const float *coarse, float *flow, long count, long height, long width, long channels,
          int threads) {
#pragma omp parallel for num_threads(threads)
    for (long line = 0; line < count * height; line++)
        flow_row(flow + line * width * 4, 4, answer + line * width * channels, channels, 0,
                 coarse ? coarse + line / height * height * width : 0, line % height, height, width);
}

void join(const value *answer, const float *flow, const value *f0, const value *f1, value *out, long count, long times,
          long rows, long top, long height, long width, long channels, long out_width, int threads) {
    long size = height * width * channels, answers = 4 + channels, used = 3 * channels + 4;
#pragma omp parallel for num_threads(threads)
    for (long line = 0; line < count * rows; line++) {
        long n = line / rows, y = top + line % rows;
        const value *a = answer + line * width * answers, *g0 = f0 + n / times * size, *g1 = f1 + n / times * size;
        const float *v = flow + line * width * 4;
        value *to = out + line * width * out_width;
        for (long x = 0; x < width; x++, v += 4, a += answers, to += out_width) {
            memcpy(to, a + 4, channels * sizeof(value));
            sample(to + channels, g0, x + v[0], y + v[1], height, width, channels);
            sample(to + 2 * channels, g1, x + v[2], y + v[3], height, width, channels);
            for (int k = 0; k < 4; k++) to[3 * channels + k] = put(v[k]);
            for (long k = used; k < out_width; k++) to[k] = put(0);
        }
    }
}

/* Row y of flow, mask and residual, 8 floats per pixel, from the last decoder's answer, which has half the size: rows,
   columns. */
static void last_row(float *row, const value *answer, const float *coarse, long y, long rows, long columns) {
    /* A square of 2x2 pixels lies in one wide pixel: the upper two, then the lower two. */
    const value *a = answer + (y / 2 * columns * 4 + y % 2 * 2) * 8;
    flow_row(row, 8, a, 32, 8, coarse, y, 2 * rows, 2 * columns);
    for (long x = 0; x < 2 * columns; x++, row += 8) {
        const value *last = a + (x / 2 * 4 + x % 2) * 8;
        row[4] = 1 / (1 + expf(-get(last[4])));
        for (int k = 5; k < 8; k++) row[k] = get(last[k]);
    }
}

/* The two of `size` lines from which an enlarged line is interpolated, and the weight of the second. */
static inline void between(long line, float ratio, long size, long *a, long *b, float *weight) {
    float place = clamp((line + 0.5f) * ratio - 0.5f, size - 1);
    *a = (long)place;
    *b = *a + (*a + 1 < size);
    *weight = place - *a;
}

/* The same for row y of a frame of another size: height, width. upper: space for two rows before they are enlarged. */
static void enlarged_row(float *row, float *upper, const value *answer, const float *coarse, long y, long rows,
                         long columns, long height, long width) {
    long a, b;
    float weight, *lower = upper + 16 * columns;
    between(y, 2.0f * rows / height, 2 * rows, &a, &b, &weight);
    last_row(upper, answer, coarse, a, rows, columns);
    last_row(lower, answer, coarse, b, rows, columns);
    for (long i = 0; i < 16 * columns; i++) upper[i] += weight * (lower[i] - upper[i]);
    for (long x = 0; x < width; x++, row += 8) {
        between(x, 2.0f * columns / width, 2 * columns, &a, &b, &weight);
        for (int k = 0; k < 8; k++) row[k] = (1 - weight) * upper[8 * a + k] + weight * upper[8 * b + k];
        for (int k = 0; k < 4; k++) row[k] *= width / (2.0f * columns);
    }
}

void blend(const value *answer, const float *coarse, const float *img0, const float *img1, float *out, long count,
           long times, long rows, long columns, long height, long width, int threads) {
    long size = height * width;
#pragma omp parallel num_threads(threads)
    {
        float *row = malloc((8 * width + 32 * columns) * sizeof(float)); /* a thread's stack may be too small for it */
#pragma omp for
        for (long line = 0; line < count * height; line++) {
            long n = line / height, y = line % height;
            const value *said = answer + n * rows * columns * 32;
            const float *flow = coarse + n * rows * columns * 4, *v = row;
            if (height == 2 * rows && width == 2 * columns)
                last_row(row, said, flow, y, rows, columns);
            else
                enlarged_row(row, row + 8 * width, said, flow, y, rows, columns, height, width);
            for (long x = 0; x < width; x++, v += 8) {
                float pixel[3] = {v[5], v[6], v[7]};
                for (int side = 0; side < 2; side++) {
                    const float *img = (side ? img1 : img0) + n / times * 3 * size;
                    float share = side ? 1 - v[4] : v[4];
                    float px = clamp(x + v[2 * side], width - 1), py = clamp(y + v[2 * side + 1], height - 1);
                    long left = (long)px, top = (long)py;
                    long right = left + (left + 1 < width), bottom = top + (top + 1 < height);
                    float wx = px - left, wy = py - top;
                    for (int k = 0; k < 3; k++, img += size)
                        pixel[k] += share * ((1 - wy) * ((1 - wx) * img[top * width + left] + wx * img[top * width + right]) +
                                             wy * ((1 - wx) * img[bottom * width + left] + wx * img[bottom * width + right]));
                }
                for (int k = 0; k < 3; k++) /* NaN stays NaN */
                    out[(3 * n + k) * size + y * width + x] = pixel[k] < 0 ? 0 : pixel[k] > 1 ? 1 : pixel[k];
            }
        }
        free(row);
    }
}

void prepare(const float *img, const float *mean, value *out, long count, long size, int threads) {
#pragma omp parallel for num_threads(threads)
    for (long chunk = 0; chunk < (count * size + 4095) / 4096; chunk++)
        for (long p = chunk * 4096; p < count * size && p < chunk * 4096 + 4096; p++) {
            long n = p / size, q = p % size;
            for (int k = 0; k < 3; k++) {
                float v = img[(3 * n + k) * size + q] - mean[n];
                out[3 * p + k] = put(v == v ? v : NAN); /* of a NaN with other bits, rounding could make a zero */
            }
        }
}

/* Up to RUN pixels, channels side by side: in place if they lie like this, otherwise copied, from any layout. */
static const value *side_by_side(const value *from, long pixel, long channel, long pixels, long channels, value *copy) {
    if (channel == 1 && pixel == channels) return from;
    if (channel == 1)
        for (long p = 0; p < pixels; p++) memcpy(copy + p * channels, from + p * pixel, channels * sizeof(value));
    else
        for (long c = 0; c < channels; c++)
            for (long p = 0; p < pixels; p++) copy[p * channels + c] = from[p * pixel + c * channel];
    return copy;
}

/* above: the gradient of prelu's result, with its strides from image to image, pixel to pixel and channel to channel.
   Slopes' gradients are summed block by block and the blocks in order: the same on any number of threads. */
void prelu_backward(const value *in, const value *above, long image, long pixel, long channel, const float *slope,
                    value *out, float *slope_out, long count, long pixels, long channels, int threads) {
    long blocks = (pixels + BLOCK - 1) / BLOCK;
    double *sums = malloc(count * blocks * channels * sizeof(double));
    float slopes[RUN * channels];
    repeat(slope, channels, RUN, slopes);
#pragma omp parallel for num_threads(threads)
    for (long block = 0; block < count * blocks; block++) {
        value copy[RUN * channels];
        float sum[RUN * channels];
        memset(sum, 0, sizeof sum);
        long n = block / blocks, first = block % blocks * BLOCK, end = first + BLOCK < pixels ? first + BLOCK : pixels;
        for (long p = first; p < end; p += RUN) {
            long size = end - p < RUN ? end - p : RUN;
            const value *g = side_by_side(above + n * image + p * pixel, pixel, channel, size, channels, copy);
            const value *x = in + (n * pixels + p) * channels;
            value *to = out + (n * pixels + p) * channels;
#pragma omp simd
            for (long i = 0; i < size * channels; i++) {
                float v = get(x[i]), up = get(g[i]);
                to[i] = put(v > 0 ? up : up * slopes[i]);
                sum[i] += v > 0 ? 0 : up * v;
            }
        }
        for (long c = 0; c < channels; c++) {
            double total = 0;
            for (long p = 0; p < RUN; p++) total += sum[p * channels + c];
            sums[block * channels + c] = total;
        }
    }
    for (long c = 0; c < channels; c++) {
        double total = 0;
        for (long block = 0; block < count * blocks; block++) total += sums[block * channels + c];
        slope_out[c] = total;
    }
    free(sums);
}

#ifdef FLOAT32
static inline float rsqrt(float x) { /* a guess from the bits, then Newton's method: a third of the time of 1 / sqrtf */
    uint32_t bits;
    float r;
    memcpy(&bits, &x, 4);
    bits = 0x5f3759df - (bits >> 1);
    memcpy(&r, &bits, 4);
    for (int k = 0; k < 3; k++) r *= 1.5f - 0.5f * x * r * r;
    return r;
}

/* The sum of the distances of `count` pairs of neighbours, i and i + b; dx, dy: what each adds to i + b's gradients. */
static inline float pairs(const float *x, const float *y, const float *inner, long b, long count, float *dx, float *dy) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < count; i++) {
        float v = x[i + b] - x[i], u = y[i + b] - y[i], counted = inner[i] + inner[i + b];
        float scale_v = rsqrt(v * v + 0.81f), scale_u = rsqrt(u * u + 0.81f);
        float s = v * scale_v - u * scale_u, below = 1 / (s * s + 0.1f);
        float common = s * below * below * counted * (0.2f * 0.81f);
        sum += s * s * below * counted;
        dx[i] = common * scale_v * scale_v * scale_v;
        dy[i] = -common * scale_u * scale_u * scale_u;
    }
    return sum;
}

static inline void pull(float *gradient, const float *d, long b, long count) {
#pragma omp simd
    for (long i = 0; i < count; i++) gradient[i] -= d[i];
#pragma omp simd
    for (long i = 0; i < count; i++) gradient[i + b] += d[i];
}

/* x and y have the same layout, `count` planes of height x width x channels values, and so has `inner`, one plane: 1
   within the border, 0 on it. A plane is one long run of values: where a neighbour would lie beyond the end of a row,
   both values are on the border and count nothing. gx, gy: initially zero, or null. */
void census(const float *x, const float *y, const float *inner, float *gx, float *gy, double *sum, long count,
            long height, long width, long channels, long border, int threads) {
    long size = height * width * channels;
#pragma omp parallel for num_threads(threads)
    for (long n = 0; n < count; n++) {
        double total = 0;
        for (long first = 0; first < size; first += BLOCK)
            for (long ahead = 1; ahead <= border * width + border; ahead++) {
                long row = (ahead + border) / width, b = ahead * channels, at = n * size + first;
                if (labs(ahead - row * width) > border) continue;
                long values = size - b - first < BLOCK ? size - b - first : BLOCK;
                float dx[BLOCK], dy[BLOCK];
                total += pairs(x + at, y + at, inner + first, b, values, dx, dy);
                if (gx) pull(gx + at, dx, b, values);
                if (gy) pull(gy + at, dy, b, values);
            }
        sum[n] = total;
    }
}
#endif
