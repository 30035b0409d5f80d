// Eigenvalues with right and left eigenvectors of a batch of small dense matrices, one thread block a matrix, and the
// gradient through them. Compiled at run time; cuda.py defines
//   REAL      float or double             COLUMNS   columns of a product that one lane holds: 1, 2 or 4
//   THREADS   largest block               H_SHARED  the Hessenberg matrix lies in shared memory
//   EPSILON   2^-23 or 2^-52              Q_SHARED  so does the unitary factor
//   STEPS     most Newton steps
//   TINY      a square below which a pair of entries, of a matrix scaled to 1, counts as zero
//   LARGEST   the largest finite number
//   SMALL     1 for n <= 16
//
// A block holds W = ceil(n / 32) warps for the Hessenberg matrix H and as many for the unitary factor Q, which work at
// the same time. If SMALL, H and Q have half a warp each, and the other warp waits until there is a Schur form.
// Methods: Householder reduction and the explicitly shifted complex QR iteration (Francis 1961; Golub & Van Loan 2013,
// chapter 7), in which a sweep is a wavefront: in H - sigma I = G^H R lane j owns column j, in R G^H + sigma I lane i
// owns row i, so that one rotation costs one shuffle and no barrier.

typedef REAL R;

struct __align__(2 * sizeof(R)) C {
  R x, y;
};

struct __align__(16) Rotation {  // [alpha, beta; -conj(beta), conj(alpha)]
  C alpha, beta;
};

#define ALL 0xffffffffu
#define LANES (SMALL ? 16 : 32)  // of a warp, side by side in one row of a product

__device__ inline C make(R x, R y) { return C{x, y}; }
__device__ inline C conj(C a) { return C{a.x, -a.y}; }
__device__ inline C operator+(C a, C b) { return C{a.x + b.x, a.y + b.y}; }
__device__ inline C operator-(C a, C b) { return C{a.x - b.x, a.y - b.y}; }
__device__ inline C operator*(C a, C b) { return C{a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x}; }
__device__ inline C operator*(R s, C a) { return C{s * a.x, s * a.y}; }
__device__ inline R square(C a) { return a.x * a.x + a.y * a.y; }
__device__ inline R size(C a) { return fabs(a.x) + fabs(a.y); }
__device__ inline R modulus(C a) { return sqrt(square(a)); }

// acc + a b
__device__ inline C fused(C acc, C a, C b) {
  acc.x = fma(a.x, b.x, acc.x);
  acc.y = fma(a.x, b.y, acc.y);
  acc.x = fma(-a.y, b.y, acc.x);
  acc.y = fma(a.y, b.x, acc.y);
  return acc;
}

__device__ inline C reciprocal(C a) {
  R s = R(1) / square(a);
  return C{a.x * s, -a.y * s};
}

__device__ inline C root(C a) {
  R r = sqrt(R(0.5) * (modulus(a) + fabs(a.x)));
  if (r == R(0)) return C{R(0), R(0)};
  R half = R(0.5) * a.y / r;
  if (a.x >= R(0)) return C{r, half};
  return C{fabs(half), a.y < R(0) ? -r : r};
}

// 1/sqrt(s) of a normal number.
__device__ inline double rough_inverse_root(double s) { return rsqrt(s); }
__device__ inline float rough_inverse_root(float s) {
  float r;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(s));
  return r;
}

__device__ inline R inverse_root(R s) {
  R r = rough_inverse_root(s);
  return fma(R(0.5) * r, fma(-s * r, r, R(1)), r);
}

// Never contracted with an addition.
__device__ inline float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double rounded_product(double a, double b) { return __dmul_rn(a, b); }

// The LANES threads that work at one row, and sums over them.
__device__ inline unsigned row_mask() { return SMALL ? 0xffffu << (threadIdx.x & 16) : ALL; }

__device__ inline R row_sum(R s) {
  for (int step = LANES / 2; step > 0; step >>= 1) s += __shfl_xor_sync(row_mask(), s, step);
  return s;
}

__device__ inline C row_sum(C s) { return C{row_sum(s.x), row_sum(s.y)}; }

__device__ inline R warp_sum(R s) {
  for (int step = 16; step > 0; step >>= 1) s += __shfl_xor_sync(ALL, s, step);
  return s;
}

__device__ inline C warp_sum(C s) { return C{warp_sum(s.x), warp_sum(s.y)}; }

__device__ inline R warp_max(R s) {
  for (int step = 16; step > 0; step >>= 1) s = fmax(s, __shfl_xor_sync(ALL, s, step));
  return s;
}

// Largest value of the whole block; every thread takes part and gets it. `scratch`: one number a warp.
__device__ R block_max(R s, R* scratch) {
  s = warp_max(s);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = s;
  __syncthreads();
  s = R(0);
#pragma unroll 1
  for (int w = 0; w < blockDim.x / 32; ++w) s = fmax(s, scratch[w]);
  return s;
}

__device__ R block_sum(R s, R* scratch) {
  s = warp_sum(s);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = s;
  __syncthreads();
  s = R(0);
#pragma unroll 1
  for (int w = 0; w < blockDim.x / 32; ++w) s += scratch[w];
  return s;
}

// Barrier among the warps of H alone.
__device__ inline void half_barrier(int warps) {
  if (SMALL)
    __syncwarp();
  else
    asm volatile("bar.sync 1, %0;" ::"r"(32 * warps) : "memory");
}

// Barrier among all who work at the Schur form.
__device__ inline void solver_barrier() {
  if (SMALL)
    __syncwarp();
  else
    __syncthreads();
}

// Sums of products: in working precision, or in about twice that (Ogita, Rump & Oishi 2005, algorithm Dot2), where one
// factor may be known to be real.
struct Plain {
  C total;
  __device__ inline void add(C a, C b) { total = fused(total, a, b); }
  __device__ inline C result() const { return total; }
};

template <bool LEFT_REAL, bool RIGHT_REAL>
struct Precise {
  C total, rest;
  __device__ static inline void add(R& total, R& rest, R a, R b) {
    R product = rounded_product(a, b);
    R sum = total + product, part = sum - total;
    rest += ((total - (sum - part)) + (product - part)) + fma(a, b, -product);
    total = sum;
  }
  __device__ inline void add(C a, C b) {
    add(total.x, rest.x, a.x, b.x);
    if (!RIGHT_REAL) add(total.y, rest.y, a.x, b.y);
    if (!LEFT_REAL && !RIGHT_REAL) add(total.x, rest.x, -a.y, b.y);
    if (!LEFT_REAL) add(total.y, rest.y, a.y, b.x);
  }
  __device__ inline void begin(C a, C b) {
    Precise<false, false> sum = {total, rest};
    sum.add(a, b);
    total = sum.total, rest = sum.rest;
  }
  __device__ inline C result() const { return total + rest; }
};

// store(row, column, start(row, column) + sum_k left(row, k) right(k, column)) for rows [first, last), of which LANES
// threads take ROWS at a time, COLUMNS columns each. `start` adds what the sum begins with.
template <int ROWS, class Sum, class Start, class Left, class Right, class Store>
__device__ inline void product(int n, int first, int last, Start start, Left left, Right right, Store store) {
  int lane = threadIdx.x % LANES, groups = blockDim.x / LANES;
  for (int row = first + ROWS * (threadIdx.x / LANES); row < last; row += ROWS * groups)
    for (int origin = 0; origin < n; origin += LANES * COLUMNS) {
      Sum sum[ROWS][COLUMNS];
      int rows[ROWS], columns[COLUMNS];
#pragma unroll
      for (int u = 0; u < ROWS; ++u) rows[u] = min(row + u, n - 1);
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) columns[c] = min(origin + lane + LANES * c, n - 1);
#pragma unroll
      for (int u = 0; u < ROWS; ++u)
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
          sum[u][c] = Sum{};
          start(sum[u][c], rows[u], columns[c]);
        }
#pragma unroll 2
      for (int k = 0; k < n; ++k) {
        C a[ROWS], b[COLUMNS];
#pragma unroll
        for (int u = 0; u < ROWS; ++u) a[u] = left(rows[u], k);
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) b[c] = right(k, columns[c]);
#pragma unroll
        for (int u = 0; u < ROWS; ++u)
#pragma unroll
          for (int c = 0; c < COLUMNS; ++c) sum[u][c].add(a[u], b[c]);
      }
#pragma unroll
      for (int u = 0; u < ROWS; ++u)
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c)
          if (row + u < last && columns[c] == origin + lane + LANES * c) store(row + u, columns[c], sum[u][c].result());
    }
}

template <class Left, class Right, class Store>
__device__ inline void plain_product(int n, Left left, Right right, Store store) {
  product<4, Plain>(n, 0, n, [](Plain&, int, int) {}, left, right, store);
}

template <class Body>
__device__ inline void each(int count, Body body) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) body(i);
}
