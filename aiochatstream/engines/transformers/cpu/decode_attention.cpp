// Writes the new keys and values of a step to the KV cache, and attends for decoding rows, which have one new token each.
//
// Compiled for a model's head size (SIZE), its number of query heads per key-value head (SHARING), and its dtype
// (BFLOAT16, or else float), and the number of tokens in a block of the cache (BLOCK). All arithmetic is in float.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "numbers.h"

#ifdef BFLOAT16
using Number = bfloat16;
#else
using Number = float;
#endif

static constexpr std::int64_t AHEAD = 32 / BLOCK;  // blocks to prefetch: processors do not predict this access pattern
static constexpr int LINE = 64 / sizeof(Number);  // numbers in a cache line

// Attends for the first `decoding` tokens of a step. Token t has position positions[t] in row rows[t].
//
// query [groups * SHARING, tokens, SIZE], key and value [groups, tokens, SIZE] have strides for a head and for a token.
// The cache, keys and values [groups, places, SIZE], has a stride for a group. New keys and values are written to
// places[t] unless that is negative. Blocks of BLOCK neighbouring places have the tokens of rows, as tables
// [rows, blocks] say.
// result [decoding, groups * SHARING, SIZE]. Each token attends to `window` tokens, including itself; 0 means all.
// sinks: null, or for each head a logit without a value.
extern "C" void attend(const Number* query, const Number* key, const Number* value, Number* keys, Number* values,
                       Number* result, const std::int64_t* places, const std::int64_t* rows,
                       const std::int64_t* positions, const std::int32_t* tables, const float* sinks,
                       std::int64_t threads, std::int64_t tokens, std::int64_t decoding, std::int64_t groups,
                       std::int64_t query_head, std::int64_t query_token, std::int64_t key_head,
                       std::int64_t key_token, std::int64_t value_head, std::int64_t value_token,
                       std::int64_t cache_group, std::int64_t table_row, std::int64_t window, float scale,
                       float softcap) {
    for (std::int64_t token = 0; token < tokens; ++token)
        for (std::int64_t group = 0; group < groups && places[token] >= 0; ++group) {
            const std::int64_t place = group * cache_group + places[token] * SIZE;
            std::memcpy(keys + place, key + group * key_head + token * key_token, SIZE * sizeof(Number));
            std::memcpy(values + place, value + group * value_head + token * value_token, SIZE * sizeof(Number));
        }

#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads)
    for (std::int64_t token = 0; token < decoding; ++token)
        for (std::int64_t group = 0; group < groups; ++group) {
            const std::int64_t end = positions[token] + 1;
            const std::int64_t begin = window ? std::max<std::int64_t>(0, end - window) : 0;
            const std::int64_t seen = end - begin, last = (end - 1) / BLOCK;
            const std::int32_t* table = tables + rows[token] * table_row;
            const Number* group_keys = keys + group * cache_group;
            const Number* group_values = values + group * cache_group;
            static thread_local std::vector<float> scores;
            scores.resize(SHARING * seen);

            float queries[SHARING][SIZE];
            for (int head = 0; head < SHARING; ++head)
                for (int at = 0; at < SIZE; ++at)
                    queries[head][at] = scale * wide(query[(group * SHARING + head) * query_head + token * query_token + at]);

            std::int64_t other = 0;
            for (std::int64_t block = begin / BLOCK; block <= last; ++block) {
                const std::int64_t from = std::max<std::int64_t>(begin - block * BLOCK, 0);
                const std::int64_t to = std::min<std::int64_t>(end - block * BLOCK, BLOCK);
                const std::int64_t place = std::int64_t(table[block]) * BLOCK * SIZE;
                const std::int64_t ahead = std::int64_t(table[std::min(block + AHEAD, last)]) * BLOCK * SIZE;
                for (std::int64_t within = from; within < to; ++within, ++other) {
                    const Number* vector = group_keys + place + within * SIZE;
                    for (int at = 0; at < SIZE; at += LINE) {
                        __builtin_prefetch(group_keys + ahead + within * SIZE + at);
                        __builtin_prefetch(group_values + place + within * SIZE + at);
                    }
                    for (int head = 0; head < SHARING; ++head) {
                        float product = 0;
                        for (int at = 0; at < SIZE; ++at) product += queries[head][at] * wide(vector[at]);
                        scores[head * seen + other] = product;
                    }
                }
            }

            float totals[SHARING];
            for (int head = 0; head < SHARING; ++head) {
                float* score = scores.data() + head * seen;
                if (softcap > 0)
                    for (std::int64_t at = 0; at < seen; ++at)  // the hyperbolic tangent
                        score[at] = softcap * (1 - 2 / (exponential(2 / softcap * score[at]) + 1));
                float most = sinks ? sinks[group * SHARING + head] : score[0], total = 0;
                for (std::int64_t at = 0; at < seen; ++at) most = std::max(most, score[at]);
                if (sinks) total = exponential(sinks[group * SHARING + head] - most);
                for (std::int64_t at = 0; at < seen; ++at) total += score[at] = exponential(score[at] - most);
                totals[head] = total;
            }

            float mixed[SHARING][SIZE] = {};
            other = 0;
            for (std::int64_t block = begin / BLOCK; block <= last; ++block) {
                const std::int64_t from = std::max<std::int64_t>(begin - block * BLOCK, 0);
                const std::int64_t to = std::min<std::int64_t>(end - block * BLOCK, BLOCK);
                const Number* vectors = group_values + std::int64_t(table[block]) * BLOCK * SIZE;
                for (std::int64_t within = from; within < to; ++within, ++other)
                    for (int head = 0; head < SHARING; ++head) {
                        const float weight = scores[head * seen + other];
                        for (int at = 0; at < SIZE; ++at) mixed[head][at] += weight * wide(vectors[within * SIZE + at]);
                    }
            }
            for (int head = 0; head < SHARING; ++head)
                for (int at = 0; at < SIZE; ++at)
                    result[((token * groups + group) * SHARING + head) * SIZE + at] =
                        narrow<Number>(mixed[head][at] / totals[head]);
        }
}
