// Updates of the states of decoding rows, which have one new token each, in place: each state is read from memory and
// written once.
//
// Token t is that of the row in slots[t]; a state is [slots, ...]. Parameters that end in _row are strides of tokens.

#include <vector>

#include "numbers.h"

// Updates the states [slots, heads, key_size, value_size] of the gated delta rule.
//
// query and key [rows, key_heads, key_size], value [rows, heads, value_size], gate and beta [rows, heads].
// result [rows, heads, value_size].
extern "C" void gated_delta_rule(float* states, const std::int64_t* slots, const float* queries, const float* keys,
                                 const float* values, const float* gate, const float* beta, float* result,
                                 std::int64_t threads, std::int64_t rows, std::int64_t heads, std::int64_t key_heads,
                                 std::int64_t key_size, std::int64_t value_size, std::int64_t query_row,
                                 std::int64_t key_row, std::int64_t value_row, std::int64_t normalizes) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> scratch(2 * key_size + value_size);
        float *query = scratch.data(), *key = query + key_size, *change = key + key_size;
#pragma omp for schedule(static)
        for (std::int64_t at = 0; at < rows * heads; ++at) {
            const std::int64_t row = at / heads, head = at % heads;
            const std::int64_t key_head = head / (heads / key_heads) * key_size;
            const float* value = values + row * value_row + head * value_size;
            float* state = states + (slots[row] * heads + head) * key_size * value_size;
            float* output = result + at * value_size;

            float query_square = 0, key_square = 0;
            for (std::int64_t i = 0; i < key_size; ++i) {
                query[i] = queries[row * query_row + key_head + i];
                key[i] = keys[row * key_row + key_head + i];
                query_square += query[i] * query[i];
                key_square += key[i] * key[i];
            }
            const float query_norm = normalizes ? std::sqrt(query_square + 1e-6f) : 1;
            const float key_norm = normalizes ? std::sqrt(key_square + 1e-6f) : 1;
            const float query_scale = 1 / (query_norm * std::sqrt(float(key_size)));
            for (std::int64_t i = 0; i < key_size; ++i) {
                query[i] *= query_scale;
                key[i] /= key_norm;
            }

            const float decay = std::exp(gate[at]);
            for (std::int64_t j = 0; j < value_size; ++j) change[j] = output[j] = 0;
            for (std::int64_t i = 0; i < key_size; ++i) {
                const float* line = state + i * value_size;
                for (std::int64_t j = 0; j < value_size; ++j) change[j] += line[j] * key[i];
            }
            for (std::int64_t j = 0; j < value_size; ++j) change[j] = (value[j] - decay * change[j]) * beta[at];
            for (std::int64_t i = 0; i < key_size; ++i) {  // the state of a head is still in the cache
                float* line = state + i * value_size;
                for (std::int64_t j = 0; j < value_size; ++j) {
                    line[j] = line[j] * decay + key[i] * change[j];
                    output[j] += line[j] * query[i];
                }
            }
        }
    }
}

// Updates the states [slots, heads, head_size, state_size] of Mamba 2.
//
// inputs [rows, heads, head_size], steps (the time steps) [rows, heads], input_maps and output_maps
// [rows, groups, state_size]; of each head: rates (the logarithms of the decay), skips and step_biases; the last two may
// be null. result [rows, heads, head_size].
extern "C" void selective_state_update(float* states, const std::int64_t* slots, const float* inputs,
                                       const float* steps, const float* input_maps, const float* output_maps,
                                       const float* rates, const float* skips, const float* step_biases,
                                       float* result, std::int64_t threads, std::int64_t rows, std::int64_t heads,
                                       std::int64_t groups, std::int64_t head_size, std::int64_t state_size,
                                       std::int64_t input_row, std::int64_t step_row, std::int64_t input_map_row,
                                       std::int64_t output_map_row, std::int64_t softplus) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t at = 0; at < rows * heads; ++at) {
        const std::int64_t row = at / heads, head = at % heads, group = head / (heads / groups) * state_size;
        const float* input = inputs + row * input_row + head * head_size;
        const float* input_map = input_maps + row * input_map_row + group;
        const float* output_map = output_maps + row * output_map_row + group;
        float* state = states + (slots[row] * heads + head) * head_size * state_size;

        float step = steps[row * step_row + head] + (step_biases ? step_biases[head] : 0);
        if (softplus && step <= 20) step = std::log1p(std::exp(step));
        const float decay = std::exp(step * rates[head]), skip = skips ? skips[head] : 0;
        for (std::int64_t i = 0; i < head_size; ++i) {
            float* line = state + i * state_size;
            const float scaled = step * input[i];
            float output = 0;
            for (std::int64_t j = 0; j < state_size; ++j) {
                line[j] = line[j] * decay + scaled * input_map[j];
                output += line[j] * output_map[j];
            }
            result[at * head_size + i] = output + skip * input[i];
        }
    }
}

static constexpr std::int64_t CHANNELS = 64;  // of a task

template <typename Number>
static inline __attribute__((always_inline)) void convolve(Number* states, const Number* inputs, const Number* weights,
                                                           const Number* biases, Number* result,
                                                           std::int64_t channels, std::int64_t length,
                                                           std::int64_t size, bool silu) {
    float sums[CHANNELS];
    for (std::int64_t channel = 0; channel < channels; ++channel) {
        Number* state = states + channel * length;
        const Number* weight = weights + channel * size;
        float sum = wide(inputs[channel]) * wide(weight[size - 1]) + (biases ? wide(biases[channel]) : 0);
        for (std::int64_t at = 0; at < size - 1; ++at) sum += wide(state[length + 1 - size + at]) * wide(weight[at]);
        for (std::int64_t at = 0; at < length - 1; ++at) state[at] = state[at + 1];
        state[length - 1] = inputs[channel];
        sums[channel] = sum;
    }
    for (std::int64_t channel = 0; channel < channels; ++channel)
        result[channel] = narrow<Number>(silu ? sums[channel] / (1 + exponential(-sums[channel])) : sums[channel]);
}

// Appends inputs [rows, channels] to the latest ones, [slots, channels, length], of a causal convolution with `size`
// weights, [channels, size], for each channel. biases [channels] may be null. result [rows, channels].
template <typename Number>
static void convolve_rows(Number* states, const std::int64_t* slots, const Number* inputs, const Number* weights,
                          const Number* biases, Number* result, std::int64_t threads, std::int64_t rows,
                          std::int64_t channels, std::int64_t length, std::int64_t size, std::int64_t input_row,
                          std::int64_t silu) {
    const std::int64_t tasks = (channels + CHANNELS - 1) / CHANNELS;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t task = 0; task < rows * tasks; ++task) {
        const std::int64_t row = task / tasks, first = task % tasks * CHANNELS;
        const std::int64_t count = std::min(CHANNELS, channels - first);
        Number* state = states + (slots[row] * channels + first) * length;
        const Number *input = inputs + row * input_row + first, *weight = weights + first * size;
        const Number* bias = biases ? biases + first : nullptr;
        Number* output = result + row * channels + first;
        if (length == 4 && size == 4)  // constants make the usual sizes faster
            convolve(state, input, weight, bias, output, count, 4, 4, silu);
        else if (length == 3 && size == 3)
            convolve(state, input, weight, bias, output, count, 3, 3, silu);
        else
            convolve(state, input, weight, bias, output, count, length, size, silu);
    }
}

extern "C" void convolve_float32(float* states, const std::int64_t* slots, const float* inputs, const float* weights,
                                 const float* biases, float* result, std::int64_t threads, std::int64_t rows,
                                 std::int64_t channels, std::int64_t length, std::int64_t size,
                                 std::int64_t input_row, std::int64_t silu) {
    convolve_rows(states, slots, inputs, weights, biases, result, threads, rows, channels, length, size, input_row,
                  silu);
}

extern "C" void convolve_bfloat16(bfloat16* states, const std::int64_t* slots, const bfloat16* inputs,
                                  const bfloat16* weights, const bfloat16* biases, bfloat16* result,
                                  std::int64_t threads, std::int64_t rows, std::int64_t channels, std::int64_t length,
                                  std::int64_t size, std::int64_t input_row, std::int64_t silu) {
    convolve_rows(states, slots, inputs, weights, biases, result, threads, rows, channels, length, size, input_row,
                  silu);
}
