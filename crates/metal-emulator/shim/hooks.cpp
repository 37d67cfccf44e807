// The callbacks that clang's thread sanitizer and block coverage insert, handed on to the scheduler. Only their
// instrumentation is used, none of their runtime. Linked into every library.
#include "abi.h"
using namespace emulator;

namespace {
// Until a library is bound, and where the scheduler itself runs a SIMD-group operation, everything counts as own stack.
Current nowhere = {nullptr, 0, UINTPTR_MAX};
const Hooks unbound = {&nowhere, nullptr, nullptr, nullptr, nullptr, nullptr};

__attribute__((always_inline)) inline void check(const volatile void *address, size_t size, uint32_t flags) {
  const Current *current = metal_emulator_hooks->current;
  bool is_misaligned = (flags & ALIGNED) && (uintptr_t)address % size;
  if ((uintptr_t)address - current->stack_start < current->stack_len && !(is_misaligned && current->thread)) return;
  metal_emulator_hooks->access(address, size, flags, __builtin_return_address(0));
}
} // namespace

extern "C" {
extern const char __ehdr_start __attribute__((visibility("hidden")));
extern const char _end __attribute__((visibility("hidden")));
const Hooks *metal_emulator_hooks = &unbound;
__attribute__((visibility("default"))) Image metal_emulator_image = {&metal_emulator_hooks, nullptr, nullptr, &__ehdr_start, &_end, nullptr, nullptr, nullptr};

#define ACCESS(n) \
  void __tsan_read##n(void *p) { check(p, n, ALIGNED); } \
  void __tsan_write##n(void *p) { check(p, n, ALIGNED | WRITE); } \
  void __tsan_unaligned_read##n(void *p) { check(p, n, 0); } \
  void __tsan_unaligned_write##n(void *p) { check(p, n, WRITE); }
ACCESS(1) ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16)
void *__tsan_memcpy(void *to, const void *from, size_t n) {
  if (n) check(from, n, 0), check(to, n, WRITE);
  return __builtin_memcpy(to, from, n);
}
void *__tsan_memmove(void *to, const void *from, size_t n) {
  if (n) check(from, n, 0), check(to, n, WRITE);
  return __builtin_memmove(to, from, n);
}
void *__tsan_memset(void *to, int value, size_t n) {
  if (n) check(to, n, WRITE);
  return __builtin_memset(to, value, n);
}
void metal_emulator_atomic(const volatile void *p, size_t n, uint32_t flags) { check(p, n, ATOMIC | ALIGNED | flags); }
void __tsan_init() {}

uint32_t metal_emulator_lane() { return metal_emulator_hooks->current->thread->lane; }
void metal_emulator_collective(Collective *part) { metal_emulator_hooks->collective(part); }
void metal_emulator_threadgroup_barrier(uint32_t flags, uint32_t line) { metal_emulator_hooks->threadgroup_barrier(flags, line); }
void metal_emulator_simdgroup_barrier(uint32_t flags) { metal_emulator_hooks->simdgroup_barrier(flags); }
void *metal_emulator_threadgroup_variable(const void *key, size_t size, size_t align) {
  return metal_emulator_hooks->threadgroup_variable(key, size, align);
}

void __sanitizer_cov_bool_flag_init(bool *start, bool *end) {
  metal_emulator_image.flags = reinterpret_cast<uint8_t *>(start);
  metal_emulator_image.flags_end = reinterpret_cast<uint8_t *>(end);
}
void __sanitizer_cov_pcs_init(const uintptr_t *start, const uintptr_t *) { metal_emulator_image.blocks = start; }

// libgcc before 13 lacks the conversions to bfloat that clang calls. Round to nearest, ties to even; NaN stays NaN.
__attribute__((weak)) __bf16 __truncsfbf2(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
  uint16_t half = is_nan ? (bits >> 16) | 0x40 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  __bf16 result;
  __builtin_memcpy(&result, &half, 2);
  return result;
}
__attribute__((weak)) __bf16 __truncdfbf2(double value) { return __truncsfbf2((float)value); }
}
