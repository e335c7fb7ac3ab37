// The scalar device functions of CUDA C++, for the host: conversions, bits, arithmetic, memory, atomics.
//
// Included before cuda_fp16.h and its like, whose host code needs many of them.  Rounding modes are exact through
// the host's floating-point environment only where a kernel is likely to ask; the fast functions are not faster.
#pragma once

#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <limits>
#include <math.h>
#include <type_traits>

#define LAYERPORT_DEVICE [[maybe_unused]] static inline
// Not watched by the compiler's checks: its accesses are its own, or checked by hand.
#define LAYERPORT_UNCHECKED __attribute__((no_sanitize("thread"), noinline))

// --- bits ----------------------------------------------------------------------------------------------------------

namespace cuda_host {

template <typename To, typename From>
To bits_as(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To result;
    memcpy(&result, &value, sizeof result);
    return result;
}

template <typename To, typename From>
To round_to(From value, int mode) {
    if (value != value) return 0;
    const int before = fegetround();
    fesetround(mode);
    const From rounded = std::nearbyint(value);
    fesetround(before);
    // The device saturates, where C++ leaves the result open.
    if (rounded >= static_cast<From>(std::numeric_limits<To>::max())) return std::numeric_limits<To>::max();
    if (rounded <= static_cast<From>(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
    return static_cast<To>(rounded);
}

template <typename To, typename From>
To convert_rounded(From value, int mode) {
    const int before = fegetround();
    fesetround(mode);
    volatile From source = value;
    volatile To result = static_cast<To>(source);
    fesetround(before);
    return result;
}

template <typename T, typename Operation>
T compute_rounded(int mode, Operation operation) {
    const int before = fegetround();
    fesetround(mode);
    volatile T result = operation();
    fesetround(before);
    return result;
}

}  // namespace cuda_host

LAYERPORT_DEVICE int __float_as_int(float value) { return cuda_host::bits_as<int>(value); }
LAYERPORT_DEVICE unsigned __float_as_uint(float value) { return cuda_host::bits_as<unsigned>(value); }
LAYERPORT_DEVICE float __int_as_float(int value) { return cuda_host::bits_as<float>(value); }
LAYERPORT_DEVICE float __uint_as_float(unsigned value) { return cuda_host::bits_as<float>(value); }
LAYERPORT_DEVICE long long __double_as_longlong(double value) { return cuda_host::bits_as<long long>(value); }
LAYERPORT_DEVICE double __longlong_as_double(long long value) { return cuda_host::bits_as<double>(value); }
LAYERPORT_DEVICE int __double2hiint(double value) { return static_cast<int>(cuda_host::bits_as<uint64_t>(value) >> 32); }
LAYERPORT_DEVICE int __double2loint(double value) { return static_cast<int>(cuda_host::bits_as<uint64_t>(value)); }

LAYERPORT_DEVICE int __popc(unsigned value) { return __builtin_popcount(value); }
LAYERPORT_DEVICE int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
LAYERPORT_DEVICE int __clz(int value) { return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value)); }
LAYERPORT_DEVICE int __clzll(long long value) { return value == 0 ? 64 : __builtin_clzll(static_cast<uint64_t>(value)); }
LAYERPORT_DEVICE int __ffs(int value) { return __builtin_ffs(value); }
LAYERPORT_DEVICE int __ffsll(long long value) { return __builtin_ffsll(value); }
LAYERPORT_DEVICE unsigned long long __brevll(unsigned long long value) {
    unsigned long long result = 0;
    for (int i = 0; i < 64; ++i) result |= (value >> i & 1) << (63 - i);
    return result;
}
LAYERPORT_DEVICE unsigned __brev(unsigned value) { return static_cast<unsigned>(__brevll(value) >> 32); }
LAYERPORT_DEVICE unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned pick = selector >> (4 * i) & 0xf;
        unsigned byte = static_cast<unsigned>(bytes >> (8 * (pick & 7))) & 0xff;
        if (pick & 8) byte = byte & 0x80 ? 0xff : 0;
        result |= byte << (8 * i);
    }
    return result;
}
LAYERPORT_DEVICE unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>(((static_cast<uint64_t>(high) << 32 | low) << (shift & 31)) >> 32);
}
LAYERPORT_DEVICE unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}

// --- integers ------------------------------------------------------------------------------------------------------

LAYERPORT_DEVICE int __mul24(int a, int b) { return (a << 8 >> 8) * (b << 8 >> 8); }
LAYERPORT_DEVICE unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffff) * (b & 0xffffff); }
LAYERPORT_DEVICE int __mulhi(int a, int b) { return static_cast<int>(static_cast<int64_t>(a) * b >> 32); }
LAYERPORT_DEVICE unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
LAYERPORT_DEVICE unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
LAYERPORT_DEVICE unsigned __sad(int a, int b, unsigned c) { return c + static_cast<unsigned>(a > b ? a - b : b - a); }
LAYERPORT_DEVICE int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; ++i) c += static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i));
    return c;
}

#define LAYERPORT_MIN_MAX(TYPE)                                                            \
    LAYERPORT_DEVICE TYPE min(TYPE a, TYPE b) { return b < a ? b : a; }                    \
    LAYERPORT_DEVICE TYPE max(TYPE a, TYPE b) { return a < b ? b : a; }
LAYERPORT_MIN_MAX(int)
LAYERPORT_MIN_MAX(unsigned)
LAYERPORT_MIN_MAX(long)
LAYERPORT_MIN_MAX(unsigned long)
LAYERPORT_MIN_MAX(long long)
LAYERPORT_MIN_MAX(unsigned long long)
#undef LAYERPORT_MIN_MAX
LAYERPORT_DEVICE unsigned min(unsigned a, int b) { return min(a, static_cast<unsigned>(b)); }
LAYERPORT_DEVICE unsigned min(int a, unsigned b) { return min(static_cast<unsigned>(a), b); }
LAYERPORT_DEVICE unsigned max(unsigned a, int b) { return max(a, static_cast<unsigned>(b)); }
LAYERPORT_DEVICE unsigned max(int a, unsigned b) { return max(static_cast<unsigned>(a), b); }
LAYERPORT_DEVICE float min(float a, float b) { return fminf(a, b); }
LAYERPORT_DEVICE float max(float a, float b) { return fmaxf(a, b); }
LAYERPORT_DEVICE double min(double a, double b) { return fmin(a, b); }
LAYERPORT_DEVICE double max(double a, double b) { return fmax(a, b); }
LAYERPORT_DEVICE double min(float a, double b) { return fmin(a, b); }
LAYERPORT_DEVICE double max(float a, double b) { return fmax(a, b); }
LAYERPORT_DEVICE double min(double a, float b) { return fmin(a, b); }
LAYERPORT_DEVICE double max(double a, float b) { return fmax(a, b); }

// --- conversions with a rounding mode ------------------------------------------------------------------------------

#define LAYERPORT_TO_INTEGER(NAME, FROM, TO)                                                                        \
    LAYERPORT_DEVICE TO __##NAME##_rn(FROM value) { return cuda_host::round_to<TO>(value, FE_TONEAREST); }          \
    LAYERPORT_DEVICE TO __##NAME##_rz(FROM value) { return cuda_host::round_to<TO>(value, FE_TOWARDZERO); }         \
    LAYERPORT_DEVICE TO __##NAME##_ru(FROM value) { return cuda_host::round_to<TO>(value, FE_UPWARD); }             \
    LAYERPORT_DEVICE TO __##NAME##_rd(FROM value) { return cuda_host::round_to<TO>(value, FE_DOWNWARD); }
LAYERPORT_TO_INTEGER(float2int, float, int)
LAYERPORT_TO_INTEGER(float2uint, float, unsigned)
LAYERPORT_TO_INTEGER(float2ll, float, long long)
LAYERPORT_TO_INTEGER(float2ull, float, unsigned long long)
LAYERPORT_TO_INTEGER(double2int, double, int)
LAYERPORT_TO_INTEGER(double2uint, double, unsigned)
LAYERPORT_TO_INTEGER(double2ll, double, long long)
LAYERPORT_TO_INTEGER(double2ull, double, unsigned long long)
#undef LAYERPORT_TO_INTEGER

#define LAYERPORT_TO_FLOAT(NAME, FROM, TO)                                                                          \
    LAYERPORT_DEVICE TO __##NAME##_rn(FROM value) { return cuda_host::convert_rounded<TO>(value, FE_TONEAREST); }   \
    LAYERPORT_DEVICE TO __##NAME##_rz(FROM value) { return cuda_host::convert_rounded<TO>(value, FE_TOWARDZERO); }  \
    LAYERPORT_DEVICE TO __##NAME##_ru(FROM value) { return cuda_host::convert_rounded<TO>(value, FE_UPWARD); }      \
    LAYERPORT_DEVICE TO __##NAME##_rd(FROM value) { return cuda_host::convert_rounded<TO>(value, FE_DOWNWARD); }
LAYERPORT_TO_FLOAT(int2float, int, float)
LAYERPORT_TO_FLOAT(uint2float, unsigned, float)
LAYERPORT_TO_FLOAT(ll2float, long long, float)
LAYERPORT_TO_FLOAT(ull2float, unsigned long long, float)
LAYERPORT_TO_FLOAT(ll2double, long long, double)
LAYERPORT_TO_FLOAT(ull2double, unsigned long long, double)
LAYERPORT_TO_FLOAT(double2float, double, float)
#undef LAYERPORT_TO_FLOAT
LAYERPORT_DEVICE double __int2double_rn(int value) { return value; }
LAYERPORT_DEVICE double __uint2double_rn(unsigned value) { return value; }

// --- floating point ------------------------------------------------------------------------------------------------

#define LAYERPORT_ROUNDED(NAME, TYPE, ARGUMENTS, EXPRESSION)                                                        \
    LAYERPORT_DEVICE TYPE NAME##_rn ARGUMENTS { return EXPRESSION; }                                                \
    LAYERPORT_DEVICE TYPE NAME##_rz ARGUMENTS {                                                                     \
        return cuda_host::compute_rounded<TYPE>(FE_TOWARDZERO, [&] { return EXPRESSION; });                         \
    }                                                                                                               \
    LAYERPORT_DEVICE TYPE NAME##_ru ARGUMENTS {                                                                     \
        return cuda_host::compute_rounded<TYPE>(FE_UPWARD, [&] { return EXPRESSION; });                             \
    }                                                                                                               \
    LAYERPORT_DEVICE TYPE NAME##_rd ARGUMENTS {                                                                     \
        return cuda_host::compute_rounded<TYPE>(FE_DOWNWARD, [&] { return EXPRESSION; });                           \
    }
LAYERPORT_ROUNDED(__fadd, float, (float a, float b), a + b)
LAYERPORT_ROUNDED(__fsub, float, (float a, float b), a - b)
LAYERPORT_ROUNDED(__fmul, float, (float a, float b), a* b)
LAYERPORT_ROUNDED(__fdiv, float, (float a, float b), a / b)
LAYERPORT_ROUNDED(__fmaf, float, (float a, float b, float c), fmaf(a, b, c))
LAYERPORT_ROUNDED(__fmaf_ieee, float, (float a, float b, float c), fmaf(a, b, c))
LAYERPORT_ROUNDED(__frcp, float, (float a), 1.0f / a)
LAYERPORT_ROUNDED(__fsqrt, float, (float a), sqrtf(a))
LAYERPORT_ROUNDED(__dadd, double, (double a, double b), a + b)
LAYERPORT_ROUNDED(__dsub, double, (double a, double b), a - b)
LAYERPORT_ROUNDED(__dmul, double, (double a, double b), a* b)
LAYERPORT_ROUNDED(__ddiv, double, (double a, double b), a / b)
LAYERPORT_ROUNDED(__fma, double, (double a, double b, double c), fma(a, b, c))
LAYERPORT_ROUNDED(__dsqrt, double, (double a), sqrt(a))
#undef LAYERPORT_ROUNDED

LAYERPORT_DEVICE float rsqrtf(float value) { return static_cast<float>(1.0 / sqrt(static_cast<double>(value))); }
LAYERPORT_DEVICE double rsqrt(double value) { return 1.0 / sqrt(value); }
LAYERPORT_DEVICE float rsqrt(float value) { return rsqrtf(value); }
LAYERPORT_DEVICE float __frsqrt_rn(float value) { return rsqrtf(value); }
LAYERPORT_DEVICE float rcbrtf(float value) { return 1.0f / cbrtf(value); }
LAYERPORT_DEVICE float __saturatef(float value) { return value > 0.0f ? (value < 1.0f ? value : 1.0f) : 0.0f; }
LAYERPORT_DEVICE float __fdividef(float a, float b) { return fabsf(b) > 0x1p126f && !std::isinf(b) ? 0.0f : a / b; }
LAYERPORT_DEVICE float fdividef(float a, float b) { return a / b; }
// Macros, because glibc declares functions of these names.
#define __expf(VALUE) expf(VALUE)
#define __exp10f(VALUE) exp10f(VALUE)
#define __logf(VALUE) logf(VALUE)
#define __log2f(VALUE) log2f(VALUE)
#define __log10f(VALUE) log10f(VALUE)
#define __powf(BASE, EXPONENT) powf(BASE, EXPONENT)
#define __sinf(VALUE) sinf(VALUE)
#define __cosf(VALUE) cosf(VALUE)
#define __tanf(VALUE) tanf(VALUE)
#define __tanhf(VALUE) tanhf(VALUE)
#define __sincosf(VALUE, SINE, COSINE) sincosf(VALUE, SINE, COSINE)
LAYERPORT_DEVICE float sinpif(float value) { return static_cast<float>(sin(M_PI * fmod(value, 2.0))); }
LAYERPORT_DEVICE float cospif(float value) { return static_cast<float>(cos(M_PI * fmod(value, 2.0))); }
LAYERPORT_DEVICE float normcdff(float value) { return 0.5f * erfcf(-value * static_cast<float>(M_SQRT1_2)); }
LAYERPORT_DEVICE float norm3df(float a, float b, float c) { return sqrtf(a * a + b * b + c * c); }
LAYERPORT_DEVICE float rhypotf(float a, float b) { return 1.0f / hypotf(a, b); }

// --- memory --------------------------------------------------------------------------------------------------------

namespace cuda_host {
void check_global(const void* address, const char* function);
}

#define LAYERPORT_LOAD(NAME)                                          \
    template <typename T> LAYERPORT_DEVICE T NAME(const T* address) { \
        cuda_host::check_global(address, #NAME);                      \
        return *address;                                              \
    }
LAYERPORT_LOAD(__ldg)
LAYERPORT_LOAD(__ldca)
LAYERPORT_LOAD(__ldcg)
LAYERPORT_LOAD(__ldcs)
LAYERPORT_LOAD(__ldlu)
LAYERPORT_LOAD(__ldcv)
#undef LAYERPORT_LOAD
#define LAYERPORT_STORE(NAME)                                                 \
    template <typename T> LAYERPORT_DEVICE void NAME(T* address, T value) { \
        cuda_host::check_global(address, #NAME);                              \
        *address = value;                                                     \
    }
LAYERPORT_STORE(__stwb)
LAYERPORT_STORE(__stcg)
LAYERPORT_STORE(__stcs)
LAYERPORT_STORE(__stwt)
#undef LAYERPORT_STORE

namespace cuda_host {
void let_others_run();
}
LAYERPORT_DEVICE void __threadfence() { cuda_host::let_others_run(); }
LAYERPORT_DEVICE void __threadfence_block() { cuda_host::let_others_run(); }
LAYERPORT_DEVICE void __threadfence_system() { cuda_host::let_others_run(); }
LAYERPORT_DEVICE void __nanosleep(unsigned) { cuda_host::let_others_run(); }
LAYERPORT_DEVICE long long clock64() { return static_cast<long long>(clock()); }

// --- atomics: only one thread runs at a time, so plain code is atomic ------------------------------------------------

namespace cuda_host {

template <typename T> struct same { using type = T; };
template <typename T> using same_t = typename same<T>::type;

void check_atomic(const void* address, size_t bytes);
void let_others_run();

template <typename T, typename Operation>
LAYERPORT_UNCHECKED T exchange(T* address, Operation operation) {
    check_atomic(address, sizeof(T));
    let_others_run();
    const T before = *address;
    *address = operation(before);
    return before;
}

}  // namespace cuda_host

// The second argument takes its type from the address, so that atomicAdd(&unsigned_counter, 1) compiles.
#define LAYERPORT_ATOMIC(NAME, EXPRESSION)                                                                          \
    template <typename T> LAYERPORT_DEVICE T NAME(T* address, cuda_host::same_t<T> value) {                         \
        return cuda_host::exchange(address, [&](T before) -> T { return EXPRESSION; });                             \
    }                                                                                                               \
    template <typename T> LAYERPORT_DEVICE T NAME##_block(T* address, cuda_host::same_t<T> value) {                 \
        return NAME(address, value);                                                                                \
    }                                                                                                               \
    template <typename T> LAYERPORT_DEVICE T NAME##_system(T* address, cuda_host::same_t<T> value) {                \
        return NAME(address, value);                                                                                \
    }
LAYERPORT_ATOMIC(atomicAdd, before + value)
LAYERPORT_ATOMIC(atomicSub, before - value)
LAYERPORT_ATOMIC(atomicExch, ((void)before, value))
LAYERPORT_ATOMIC(atomicMin, value < before ? value : before)
LAYERPORT_ATOMIC(atomicMax, before < value ? value : before)
LAYERPORT_ATOMIC(atomicAnd, before& value)
LAYERPORT_ATOMIC(atomicOr, before | value)
LAYERPORT_ATOMIC(atomicXor, before ^ value)
LAYERPORT_ATOMIC(atomicInc, before >= value ? T(0) : before + T(1))
LAYERPORT_ATOMIC(atomicDec, before == T(0) || before > value ? value : before - T(1))
#undef LAYERPORT_ATOMIC
template <typename T>
LAYERPORT_DEVICE T atomicCAS(T* address, cuda_host::same_t<T> compare, cuda_host::same_t<T> value) {
    return cuda_host::exchange(address, [&](T before) -> T { return before == compare ? value : before; });
}
