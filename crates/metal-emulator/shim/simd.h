// Barriers, atomics, SIMD-group functions and SIMD-group matrices (MSL 6.7, 6.9, 6.15). In a SIMD-group operation every
// lane hands in its part and the scheduler runs the operation once for all that take part.
#pragma once
#define AT uint32_t line = __builtin_LINE()

namespace metal {
enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4, mem_threadgroup_imageblock = 8 };
inline mem_flags operator|(mem_flags a, mem_flags b) { return (mem_flags)((int)a | (int)b); }
inline void threadgroup_barrier(mem_flags flags, AT) { metal_emulator_threadgroup_barrier((uint32_t)flags, line); }

// One thread runs at a time, so plain accesses are atomic; the check is told what they are.
enum memory_order { memory_order_relaxed };
template <class T> struct atomic { T value; };
typedef atomic<uint> atomic_uint;
typedef atomic<int> atomic_int;
typedef atomic<bool> atomic_bool;
typedef atomic<float> atomic_float;
typedef atomic<ulong> atomic_ulong;
#ifdef METAL_EMULATOR_FULL
#define TELL(flags) metal_emulator_atomic(object, sizeof(object->value), flags)
#else
#define TELL(flags) (void)0
#endif
// `A` is an atomic type in any address space.
#define ATOMIC template <class A, class U = int> __attribute__((no_sanitize("thread"))) inline
ATOMIC auto atomic_load_explicit(const A *object, memory_order) { TELL(0); return object->value; }
ATOMIC void atomic_store_explicit(A *object, U desired, memory_order) { TELL(emulator::WRITE); object->value = desired; }
ATOMIC auto atomic_exchange_explicit(A *object, U desired, memory_order) {
  TELL(emulator::WRITE | emulator::UPDATE);
  auto old = object->value;
  object->value = desired;
  return old;
}
ATOMIC bool atomic_compare_exchange_weak_explicit(A *object, U *expected, decltype(A::value) desired, memory_order, memory_order) {
  TELL(emulator::WRITE | emulator::UPDATE);
  if (object->value == *expected) {
    object->value = desired;
    return true;
  }
  *expected = object->value;
  return false;
}
#define FETCH(name, ...) \
  ATOMIC auto atomic_fetch_##name##_explicit(A *object, U operand, memory_order) { \
    TELL(emulator::WRITE | emulator::UPDATE); \
    auto old = object->value; \
    decltype(old) x = operand; \
    object->value = __VA_ARGS__; \
    return old; \
  }
FETCH(add, old + x) FETCH(sub, old - x) FETCH(min, x < old ? x : old) FETCH(max, x > old ? x : old)
FETCH(and, old & x) FETCH(or, old | x) FETCH(xor, old ^ x)
#undef TELL
#undef ATOMIC
#undef FETCH
} // namespace metal

namespace emulator {
template <class T> struct Part : Collective { T in, out; uint32_t operand; };

template <class T, class F> void reduce(Collective **lanes) {
  // Pairwise, as a tree: closer to hardware than from left to right.
  T value[SIMD_WIDTH];
  bool has[SIMD_WIDTH];
  for (unsigned i = 0; i < SIMD_WIDTH; i++)
    if ((has[i] = lanes[i])) value[i] = ((Part<T> *)lanes[i])->in;
  for (unsigned step = SIMD_WIDTH / 2; step; step /= 2)
    for (unsigned i = 0; i < step; i++)
      if (has[i + step]) value[i] = has[i] ? F::apply(value[i], value[i + step]) : value[i + step], has[i] = true;
  for (unsigned i = 0; i < SIMD_WIDTH; i++)
    if (lanes[i]) ((Part<T> *)lanes[i])->out = value[0];
}
template <class T, class F> void shuffle(Collective **lanes) {
  for (unsigned i = 0; i < SIMD_WIDTH; i++) {
    auto *part = (Part<T> *)lanes[i];
    if (!part) continue;
    unsigned from = F::source(i, part->operand);
    if (from >= SIMD_WIDTH) part->out = part->in;
    else if (lanes[from]) part->out = ((Part<T> *)lanes[from])->in;
    else __builtin_memset(&part->out, 0xFF, sizeof(T)); // undefined by the specification: NaN, so that it shows
  }
}
template <class T, class F, bool IS_EXCLUSIVE> void scan(Collective **lanes) {
  T sum = F::template identity<T>();
  for (unsigned i = 0; i < SIMD_WIDTH; i++)
    if (auto *part = (Part<T> *)lanes[i]) {
      T next = F::apply(sum, part->in);
      part->out = IS_EXCLUSIVE ? sum : next;
      sum = next;
    }
}
inline void ballot(Collective **lanes) {
  uint32_t votes = 0;
  for (unsigned i = 0; i < SIMD_WIDTH; i++)
    if (lanes[i] && ((Part<uint32_t> *)lanes[i])->in) votes |= 1u << i;
  for (unsigned i = 0; i < SIMD_WIDTH; i++)
    if (lanes[i]) ((Part<uint32_t> *)lanes[i])->out = votes;
}
inline void first(Collective **lanes) {
  unsigned first = 0;
  while (!lanes[first]) first++;
  for (unsigned i = 0; i < SIMD_WIDTH; i++)
    if (lanes[i]) ((Part<uint32_t> *)lanes[i])->out = first;
}
inline void meet(Collective **) {}
template <class T> inline T together(void (*run)(Collective **), T in, uint32_t operand, uint32_t line) {
  Part<T> part;
  part.run = run, part.line = line, part.in = in, part.operand = operand;
  metal_emulator_collective(&part);
  return part.out;
}
inline uint32_t lane() { return metal_emulator_lane(); }

#define OPERATION(name, expression) \
  struct name { template <class T> static T apply(T a, T b) { return expression; } };
struct Sum {
  template <class T> static T apply(T a, T b) { return a + b; }
  template <class T> static T identity() { return T(0); }
};
struct Product {
  template <class T> static T apply(T a, T b) { return a * b; }
  template <class T> static T identity() { return T(1); }
};
OPERATION(Max, metal::max(a, b)) OPERATION(Min, metal::min(a, b)) OPERATION(And, a & b) OPERATION(Or, a | b) OPERATION(Xor, a ^ b)
#undef OPERATION
#define SOURCE(name, expression) \
  struct name { static unsigned source(unsigned i, unsigned x) { return expression; } };
SOURCE(FromIndex, x) SOURCE(FromXor, i ^ x) SOURCE(FromDown, i + x) SOURCE(FromUp, i - x)
SOURCE(FromRotateDown, (i + x) % SIMD_WIDTH) SOURCE(FromRotateUp, (i - x) % SIMD_WIDTH) SOURCE(FromQuad, (i & ~3u) + (x & 3))
SOURCE(FromQuadXor, (i & ~3u) + ((i ^ x) & 3))
#undef SOURCE
} // namespace emulator

namespace metal {
// No 64-bit types and no bfloat, as on Apple's GPUs.
template <class T> struct __is_valid_simdgroup_type : bool_constant<
  (is_integral_v<emulator::element<T>> && sizeof(emulator::element<T>) <= 4 && !is_same_v<T, bool>) ||
  is_same_v<emulator::element<T>, float> || is_same_v<emulator::element<T>, half>> {};
#define VALID class = enable_if_t<__is_valid_simdgroup_type<T>::value>
#define REDUCE(name, F) \
  template <class T, VALID> inline T simd_##name(T x, AT) { return emulator::together<T>(&emulator::reduce<T, emulator::F>, x, 0, line); }
REDUCE(sum, Sum) REDUCE(product, Product) REDUCE(max, Max) REDUCE(min, Min) REDUCE(and, And) REDUCE(or, Or) REDUCE(xor, Xor)
#define SHUFFLE(name, F) \
  template <class T, VALID> inline T name(T x, ushort operand, AT) { return emulator::together<T>(&emulator::shuffle<T, emulator::F>, x, operand, line); }
SHUFFLE(simd_shuffle, FromIndex) SHUFFLE(simd_broadcast, FromIndex) SHUFFLE(simd_shuffle_xor, FromXor)
SHUFFLE(simd_shuffle_down, FromDown) SHUFFLE(simd_shuffle_up, FromUp) SHUFFLE(simd_shuffle_rotate_down, FromRotateDown)
SHUFFLE(simd_shuffle_rotate_up, FromRotateUp) SHUFFLE(quad_broadcast, FromQuad) SHUFFLE(quad_shuffle, FromQuad)
SHUFFLE(quad_shuffle_xor, FromQuadXor)
#define SCAN(name, F, is_exclusive) \
  template <class T, VALID> inline T name(T x, AT) { return emulator::together<T>(&emulator::scan<T, emulator::F, is_exclusive>, x, 0, line); }
SCAN(simd_prefix_inclusive_sum, Sum, false) SCAN(simd_prefix_exclusive_sum, Sum, true)
SCAN(simd_prefix_inclusive_product, Product, false) SCAN(simd_prefix_exclusive_product, Product, true)
struct simd_vote {
  uint64_t votes;
  explicit operator uint64_t() const { return votes; }
  bool all() const { return (uint32_t)votes == ~0u; }
  bool any() const { return votes; }
};
inline simd_vote simd_ballot(bool vote, AT) { return {emulator::together<uint32_t>(&emulator::ballot, vote, 0, line)}; }
inline bool simd_any(bool vote, AT) { return emulator::together<uint32_t>(&emulator::reduce<uint32_t, emulator::Or>, vote, 0, line); }
inline bool simd_all(bool vote, AT) { return emulator::together<uint32_t>(&emulator::reduce<uint32_t, emulator::And>, vote, 0, line); }
inline bool simd_is_first(AT) { return emulator::together<uint32_t>(&emulator::first, 0, 0, line) == emulator::lane(); }
template <class T, VALID> inline T simd_broadcast_first(T x, AT) {
  uint32_t first = emulator::together<uint32_t>(&emulator::first, 0, 0, line);
  return emulator::together<T>(&emulator::shuffle<T, emulator::FromIndex>, x, first, line);
}
inline void simdgroup_barrier(mem_flags flags, AT) {
  emulator::together<uint32_t>(&emulator::meet, 0, 0, line);
  metal_emulator_simdgroup_barrier((uint32_t)flags);
}
#undef REDUCE
#undef SHUFFLE
#undef SCAN
#undef VALID

// 8×8 matrices over 32 lanes, two elements of a row in each. The specification leaves the layout open; this is the one
// that MLX relies on.
template <class T, int R, int C> struct simdgroup_matrix {
  static_assert(R == 8 && C == 8, "only 8×8");
  vec<T, 2> elements;
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T diagonal) {
    for (unsigned i = 0; i < 2; i++) elements[i] = row(emulator::lane()) == col(emulator::lane()) + i ? diagonal : (T)0;
  }
  vec<T, 2> &thread_elements() { return elements; }
  const vec<T, 2> &thread_elements() const { return elements; }
  static unsigned row(unsigned lane) { return ((lane / 4) & 4) + (lane / 2) % 4; }
  static unsigned col(unsigned lane) { return ((lane / 4) & 2) * 2 + (lane % 2) * 2; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;
template <class T, int C, int R = C> inline simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, R, C> filled;
  filled.elements = vec<T, 2>(value);
  return filled;
}
template <class T, int C, int R = C> inline simdgroup_matrix<T, R, C> make_diagonal_simdgroup_matrix(T value) { return simdgroup_matrix<T, R, C>(value); }
inline ulong simdgroup_offset(unsigned i, ulong row_elements, ulong2 origin, bool is_transposed) {
  ulong row = simdgroup_float8x8::row(emulator::lane()), col = simdgroup_float8x8::col(emulator::lane()) + i;
  return is_transposed ? (col + origin.y) * row_elements + row + origin.x : (row + origin.y) * row_elements + col + origin.x;
}
template <class T> T plain(T value);
template <class T, class U> inline void simdgroup_load(simdgroup_matrix<T, 8, 8> &to, const U *from, ulong row_elements = 8, ulong2 origin = 0, bool is_transposed = false) {
  static_assert(is_same_v<T, decltype(plain(*from))>, "simdgroup_load from another type");
  for (unsigned i = 0; i < 2; i++) to.elements[i] = from[simdgroup_offset(i, row_elements, origin, is_transposed)];
}
template <class T, class U> inline void simdgroup_store(const simdgroup_matrix<T, 8, 8> &from, U *to, ulong row_elements = 8, ulong2 origin = 0, bool is_transposed = false) {
  static_assert(is_same_v<T, decltype(plain(*to))>, "simdgroup_store to another type");
  for (unsigned i = 0; i < 2; i++) to[simdgroup_offset(i, row_elements, origin, is_transposed)] = from.elements[i];
}
} // namespace metal

namespace emulator {
template <class D, class A, class B, class C> struct Multiply : Collective { vec<D, 2> d; vec<A, 2> a; vec<B, 2> b; vec<C, 2> c; };
template <class D, class A, class B, class C> void multiply(Collective **lanes) {
  using M = metal::simdgroup_float8x8;
  using Lane = Multiply<D, A, B, C>;
  float a[8][8], b[8][8], product[8][8] = {};
  for (unsigned i = 0; i < SIMD_WIDTH; i++)
    for (unsigned j = 0; j < 2; j++) {
      a[M::row(i)][M::col(i) + j] = lanes[i] ? (float)((Lane *)lanes[i])->a[j] : __builtin_nanf("");
      b[M::row(i)][M::col(i) + j] = lanes[i] ? (float)((Lane *)lanes[i])->b[j] : __builtin_nanf("");
    }
  for (unsigned r = 0; r < 8; r++)
    for (unsigned k = 0; k < 8; k++)
      for (unsigned c = 0; c < 8; c++) product[r][c] += a[r][k] * b[k][c];
  for (unsigned i = 0; i < SIMD_WIDTH; i++)
    if (auto *lane = (Lane *)lanes[i])
      for (unsigned j = 0; j < 2; j++) lane->d[j] = (D)(product[M::row(i)][M::col(i) + j] + (float)lane->c[j]);
}
} // namespace emulator

namespace metal {
template <class D, class A, class B, class C>
inline void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8> &d, const simdgroup_matrix<A, 8, 8> &a, const simdgroup_matrix<B, 8, 8> &b, const simdgroup_matrix<C, 8, 8> &c, AT) {
  emulator::Multiply<D, A, B, C> part;
  part.run = &emulator::multiply<D, A, B, C>, part.line = line;
  part.a = a.elements, part.b = b.elements, part.c = c.elements;
  metal_emulator_collective(&part);
  d.elements = part.d;
}
template <class D, class A, class B>
inline void simdgroup_multiply(simdgroup_matrix<D, 8, 8> &d, const simdgroup_matrix<A, 8, 8> &a, const simdgroup_matrix<B, 8, 8> &b, AT) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<D, 8>((D)0), line);
}
} // namespace metal
#undef AT
