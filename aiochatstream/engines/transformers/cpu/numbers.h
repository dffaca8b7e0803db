// Numbers of the dtypes that the C++ code computes with. All arithmetic is in float.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

using bfloat16 = std::uint16_t;  // the upper half of a float

static inline float wide(float number) { return number; }

static inline float wide(bfloat16 number) {
    const std::uint32_t bits = std::uint32_t(number) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

template <typename Number>
static inline Number narrow(float value);

template <>
inline float narrow(float value) {
    return value;
}

template <>
inline bfloat16 narrow(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return std::isnan(value) ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to the nearest, ties to even
}

// exp(power): a power of two from its bits, times some terms of the series. Vectorised, unlike std::exp. NaN stays NaN.
static inline float exponential(float power) {
    const float within = std::min(88.0f, power > -87.0f ? power : -87.0f);
    const float whole = std::nearbyint(within * 1.44269504f);
    const float x = within - whole * 0.69314575f - whole * 1.42860677e-6f;
    const float series = 1 + x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6)))));
    const std::int32_t bits = (std::int32_t(whole) + 127) << 23;
    float two;
    std::memcpy(&two, &bits, sizeof two);
    return std::isnan(power) ? power : two * series;
}
