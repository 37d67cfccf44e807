// What a compiled library and the scheduler (src/image.rs, src/machine.rs) say to each other. Both sides in one order.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace emulator {
constexpr unsigned SIMD_WIDTH = 32; // of every Apple GPU

struct Triple { uint32_t x, y, z; };

// What a running thread knows about itself (MSL 5.2.3.6).
struct Thread {
  Triple position_in_grid, position_in_threadgroup, threadgroup_position, threads_per_threadgroup, threadgroups_per_grid,
      threads_per_grid;
  uint32_t index_in_threadgroup, lane, simdgroup, simdgroups;
};

// One lane's part in a SIMD-group operation. `run` is called once for all lanes that take part; a lane that doesn't is null.
struct Collective {
  void (*run)(Collective **lanes);
  uint32_t line;
};

// UPDATE: an atomic operation that reads what it overwrites.
enum AccessFlag : uint32_t { WRITE = 1, ATOMIC = 2, ALIGNED = 4, UPDATE = 8 };

// Where the code runs now. Accesses to the thread's own stack need no check.
struct Current {
  const Thread *thread;
  uintptr_t stack_start, stack_len;
};

struct Hooks {
  Current *current;
  void (*collective)(Collective *);
  void (*threadgroup_barrier)(uint32_t flags, uint32_t line);
  void (*simdgroup_barrier)(uint32_t flags);
  void *(*threadgroup_variable)(const void *key, size_t size, size_t align);
  void (*access)(const volatile void *address, size_t size, uint32_t flags, const void *code);
};

// `kind`: 'b' a buffer, 't' threadgroup memory, else which property of the thread. `is_used` is null or a function
// constant's condition.
struct Parameter {
  char kind;
  uint32_t index;
  bool (*is_used)();
};
struct Kernel {
  const char *name;
  void *function;
  const Parameter *parameters;
  size_t parameter_count;
  void (*invoke)(void *function, void *const *arguments, const Thread &, const Parameter *);
  Kernel *next;
};
struct Constant {
  const char *name;
  uint32_t index;
  void *value;
  size_t size;
  bool is_float, *is_defined;
  Constant *next;
};

// The one symbol that the scheduler looks up.
struct Image {
  const Hooks **hooks;
  Kernel *kernels;
  Constant *constants;
  const char *start, *end;           // the library's own memory: tables in constant memory lie here
  uint8_t *flags, *flags_end;  // whether each block of code ran, where it was compiled for coverage
  const uintptr_t *blocks;           // pairs of address and flags, one for each counter
};
} // namespace emulator
extern "C" __attribute__((visibility("hidden"))) const emulator::Hooks *metal_emulator_hooks;
extern "C" emulator::Image metal_emulator_image;

// What compiled kernels call, in shim/hooks.cpp, where no access is checked.
#pragma GCC visibility push(hidden)
extern "C" {
uint32_t metal_emulator_lane();
void metal_emulator_collective(emulator::Collective *);
void metal_emulator_threadgroup_barrier(uint32_t flags, uint32_t line);
void metal_emulator_simdgroup_barrier(uint32_t flags);
void *metal_emulator_threadgroup_variable(const void *key, size_t size, size_t align);
void metal_emulator_atomic(const volatile void *, size_t, uint32_t flags);
}
#pragma GCC visibility pop
