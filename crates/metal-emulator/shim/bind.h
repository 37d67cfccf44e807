// Registration of kernels and function constants, and the call of a kernel with its arguments.
#pragma once
// These read what belongs to the scheduler.
#define UNCHECKED __attribute__((no_sanitize("thread")))
namespace emulator {
template <class A> UNCHECKED inline A property(Triple value) {
  if constexpr (length<A> == 0) return (A)value.x;
  else {
    A result;
    uint32_t parts[3] = {value.x, value.y, value.z};
    for (int i = 0; i < length<A>; i++) result[i] = parts[i];
    return result;
  }
}
// The letters are those of src/build/translate.rs.
template <class A> UNCHECKED inline A property(const Thread &thread, char kind) {
  switch (kind) {
    case 'G': return property<A>(thread.position_in_grid);
    case 'T': return property<A>(thread.position_in_threadgroup);
    case 'g': return property<A>(thread.threadgroup_position);
    case 's': return property<A>(thread.threads_per_threadgroup);
    case 'n': return property<A>(thread.threadgroups_per_grid);
    case 'N': return property<A>(thread.threads_per_grid);
    case 'i': return property<A>({thread.index_in_threadgroup, 0, 0});
    case 'l': return property<A>({thread.lane, 0, 0});
    case 'q': return property<A>({thread.simdgroup, 0, 0});
    case 'Q': return property<A>({thread.simdgroups, 0, 0});
    case 'w': return property<A>({SIMD_WIDTH, 0, 0});
  }
  __builtin_trap();
}
template <class A> UNCHECKED inline A argument(void *bound, const Thread &thread, const Parameter &parameter) {
  if constexpr (__is_reference(A)) return *(metal::remove_reference_t<A> *)bound;
  else if constexpr (__is_pointer(A)) return (A)bound;
  else return property<A>(thread, parameter.kind);
}
template <class T, T...> struct Sequence {};
template <class... A, size_t... I>
UNCHECKED inline void call(void (*function)(A...), void *const *bound, const Thread &thread, const Parameter *parameters, Sequence<size_t, I...>) {
  function(argument<A>(bound[I], thread, parameters[I])...);
}
template <class... A> UNCHECKED void invoke(void *function, void *const *bound, const Thread &thread, const Parameter *parameters) {
  call((void (*)(A...))function, bound, thread, parameters, __make_integer_seq<Sequence, size_t, sizeof...(A)>{});
}
struct KernelEntry {
  Kernel kernel;
  template <class... A, size_t N>
  KernelEntry(const char *name, void (*function)(A...), const Parameter (&parameters)[N])
      : kernel{name, (void *)function, parameters, N, &invoke<A...>, metal_emulator_image.kernels} {
    static_assert(N == sizeof...(A), "every parameter is described");
    metal_emulator_image.kernels = &kernel;
  }
};
struct ConstantEntry {
  Constant constant;
  template <class T> ConstantEntry(const char *name, uint32_t index, T *value, bool *is_defined)
      : constant{name, index, value, sizeof(T), metal::is_floating_point_v<T>, is_defined, metal_emulator_image.constants} {
    metal_emulator_image.constants = &constant;
  }
};
} // namespace emulator
#undef UNCHECKED
#define EMULATOR_JOIN_(a, b) a##b
#define EMULATOR_JOIN(a, b) EMULATOR_JOIN_(a, b)
#define EMULATOR_KERNEL(parameters, name, ...) static emulator::KernelEntry EMULATOR_JOIN(emulator_kernel_, __COUNTER__)(name, &__VA_ARGS__, parameters);
#define EMULATOR_CONSTANT(T, name, index) static T name; static bool emulator_has_##name; static emulator::ConstantEntry emulator_constant_##name(#name, index, &name, &emulator_has_##name);
#define is_function_constant_defined(name) emulator_has_##name
