// Linear layers whose weights are int8 with a scale for each output.
//
// The inputs of each token are rounded to 16-bit integers with a scale of their own, as finely as a sum of products may
// be large. Sums of integers are exact: a token's result does not depend on the other tokens of a step.
//
// Weights are stored in panels of 16 outputs, [panels, pairs of inputs, 16 outputs, 2 inputs]. A panel remains in the
// L1 cache while it is multiplied by a block of tokens, whose integers remain in the L2 cache.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <immintrin.h>

constexpr int OUTPUTS = 16;     // of a panel
constexpr int TOKEN_BLOCK = 48;  // a multiple of TOKENS
constexpr float TINY = 1e-30f;   // inputs below are 0: their scale would not be finite

#if defined(__AVX512BW__)
constexpr int TOKENS = 8;  // their sums fit into registers

using Weights = __m512i;
using Sums = __m512i;

static inline Weights load(const int8_t *pair) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(pair)));
}

static inline Sums zero() { return _mm512_setzero_si512(); }

static inline Sums add_products(Sums sums, Weights weights, int32_t inputs) {
#if defined(__AVX512VNNI__)
    return _mm512_dpwssd_epi32(sums, weights, _mm512_set1_epi32(inputs));
#else
    return _mm512_add_epi32(sums, _mm512_madd_epi16(weights, _mm512_set1_epi32(inputs)));
#endif
}

static inline void store(int32_t *target, Sums sums) { _mm512_storeu_si512(target, sums); }
#else
constexpr int TOKENS = 4;

struct Weights {
    __m256i low, high;
};
using Sums = Weights;

static inline Weights load(const int8_t *pair) {
    const __m128i *halves = reinterpret_cast<const __m128i *>(pair);
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128(halves)), _mm256_cvtepi8_epi16(_mm_loadu_si128(halves + 1))};
}

static inline Sums zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }

static inline Sums add_products(Sums sums, Weights weights, int32_t inputs) {
    __m256i values = _mm256_set1_epi32(inputs);
    return {_mm256_add_epi32(sums.low, _mm256_madd_epi16(weights.low, values)),
            _mm256_add_epi32(sums.high, _mm256_madd_epi16(weights.high, values))};
}

static inline void store(int32_t *target, Sums sums) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(target), sums.low);
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(target + OUTPUTS / 2), sums.high);
}
#endif

// Rounds the inputs of a token to integers of at most `limit`; returns their scale, which is NaN unless all are finite.
static float quantize(const float *inputs, int16_t *integers, int64_t size, int64_t padded_size, float limit) {
    float largest = 0, faults = 0;
    for (int64_t at = 0; at < size; at++) {
        float value = inputs[at];
        largest = largest > std::fabs(value) ? largest : std::fabs(value);
        faults += value * 0;
    }
    bool is_usable = faults == 0 && largest > TINY;
    float factor = is_usable ? limit / largest : 0;
    for (int64_t at = 0; at < size; at++) integers[at] = is_usable ? int16_t(std::rint(inputs[at] * factor)) : 0;
    for (int64_t at = size; at < padded_size; at++) integers[at] = 0;
    return largest / limit + faults;
}

template <int COUNT>
static void multiply(const int8_t *panel, const int16_t *integers, int64_t pairs, int32_t (*results)[OUTPUTS]) {
    Sums sums[COUNT];
    for (int token = 0; token < COUNT; token++) sums[token] = zero();
    for (int64_t pair = 0; pair < pairs; pair++) {
        Weights weights = load(panel + pair * 2 * OUTPUTS);
#pragma GCC unroll 8
        for (int token = 0; token < COUNT; token++) {
            int32_t inputs;
            std::memcpy(&inputs, integers + (token * pairs + pair) * 2, sizeof inputs);
            sums[token] = add_products(sums[token], weights, inputs);
        }
    }
    for (int token = 0; token < COUNT; token++) store(results[token], sums[token]);
}

// Calls `multiply` for `count` tokens, which is at most COUNT.
template <int COUNT>
static void multiply_some(int64_t count, const int8_t *panel, const int16_t *integers, int64_t pairs,
                          int32_t (*results)[OUTPUTS]) {
    if (count >= COUNT)
        multiply<COUNT>(panel, integers, pairs, results);
    else if constexpr (COUNT > 1)
        multiply_some<COUNT - 1>(count, panel, integers, pairs, results);
}

static inline int64_t smaller(int64_t first, int64_t second) { return first < second ? first : second; }

// inputs: [tokens, size]; bias: [output_size] or null; outputs: [tokens, output_size].
// integers: [tokens, size rounded up to pairs] and input_scales: [tokens], of which the contents are overwritten.
extern "C" void linear(const float *inputs, const int8_t *weights, const float *scales, const float *bias,
                       float *outputs, int16_t *integers, float *input_scales, int64_t threads, int64_t tokens,
                       int64_t size, int64_t output_size, float limit) {
    int64_t pairs = (size + 1) / 2;
    int64_t panels = (output_size + OUTPUTS - 1) / OUTPUTS;
    int64_t blocks = (tokens + TOKEN_BLOCK - 1) / TOKEN_BLOCK;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (int64_t token = 0; token < tokens; token++)
            input_scales[token] =
                quantize(inputs + token * size, integers + token * 2 * pairs, size, 2 * pairs, limit);
#pragma omp for collapse(2)
        for (int64_t block = 0; block < blocks; block++) {
            for (int64_t panel = 0; panel < panels; panel++) {
                const int8_t *panel_weights = weights + panel * pairs * 2 * OUTPUTS;
                int64_t output = panel * OUTPUTS, count = smaller(OUTPUTS, output_size - output);
                int64_t end = smaller(tokens, (block + 1) * TOKEN_BLOCK);
                for (int64_t token = block * TOKEN_BLOCK; token < end; token += TOKENS) {
                    int32_t sums[TOKENS][OUTPUTS];
                    int64_t rows = smaller(TOKENS, end - token);
                    multiply_some<TOKENS>(rows, panel_weights, integers + token * 2 * pairs, pairs, sums);
                    for (int64_t row = 0; row < rows; row++) {
                        float *result = outputs + (token + row) * output_size + output;
                        float scale = input_scales[token + row];
                        for (int64_t at = 0; at < count; at++) {
                            float value = float(sums[row][at]) * (scale * scales[output + at]);
                            result[at] = bias ? value + bias[output + at] : value;
                        }
                    }
                }
            }
        }
    }
}
