// Where the parts of one matrix lie, in device memory or in the block's shared memory.
struct Frame {
  C *A, *V, *W, *H, *Q, *P, *K, *spare_v, *spare_w, *vector, *values;
  Rotation* rotations;
  R *lengths, *scratch, *factors;
  int* partner;
  int n, ld;

  __device__ inline Frame(unsigned char* memory, C* block, C* right, C* left, int size) {
    int area = size * size;
    n = size, ld = H_SHARED ? n | 1 : n;
    rotations = (Rotation*)memory;
    vector = (C*)(rotations + 2 * n);
    values = vector + n;
    C* rest = values + n;
    if (SMALL) {
      A = right;  // until the vectors are handed out
      H = spare_v = take(rest, n * ld);  // H and Q are of no other use once there are vectors
      Q = spare_w = take(rest, n * ld);
      P = take(rest, area), K = take(rest, area), V = take(rest, area), W = take(rest, area);
    } else {
      A = block, spare_v = block + area, spare_w = block + 2 * area, P = block + 3 * area, K = block + 4 * area;
      V = right, W = left;
      H = H_SHARED ? take(rest, n * ld) : spare_v;
      Q = Q_SHARED ? take(rest, area) : spare_w;
    }
    lengths = (R*)rest;
    scratch = lengths + n;
    partner = (int*)(scratch + 32);
    factors = (R*)vector;
  }

  __device__ static inline C* take(C*& rest, int count) {
    C* start = rest;
    rest += count;
    return start;
  }
};

struct Scale {
  int exponent;
  R norm;  // of the scaled matrix
  bool finite;
};

// A and H, scaled by a power of two to entries of at most 1, or zero if not finite; Q = I.
__device__ inline Scale load(Frame f, const R* source, bool real) {
  int n = f.n, ld = f.ld;
  R largest = R(0), wrong = R(0), total = R(0);
  each(n * n * (real ? 1 : 2), [&](int e) {
    R entry = fabs(source[e]);
    if (!(entry <= R(LARGEST))) wrong = R(1);
    largest = fmax(largest, entry);
  });
  bool finite = block_max(wrong, f.scratch) == R(0);
  largest = block_max(largest, f.scratch);
  int exponent = finite && largest > R(0) ? ilogb(largest) + 1 : 0;
  each(n * n, [&](int e) {
    C entry = real ? make(source[e], R(0)) : make(source[2 * e], source[2 * e + 1]);
    entry = finite ? make(scalbn(entry.x, -exponent), scalbn(entry.y, -exponent)) : make(R(0), R(0));
    f.A[e] = entry;
    f.H[e / n * ld + e % n] = entry;
    f.Q[place_in_q(e / n, e % n, ld, n)] = make(e / n == e % n ? R(1) : R(0), R(0));
    total += square(entry);
  });
  R norm = sqrt(block_sum(total, f.scratch));
  __syncthreads();
  return Scale{exponent, norm, finite};
}

// Values, V and W from the Schur form; false if the QR iteration did not end.
__device__ inline bool solve(Frame f, R norm, bool real, Role role) {
  int n = f.n, ld = f.ld;
  C *H = f.H, *Q = f.Q, *P = f.P, *K = f.K, *V = f.V, *W = f.W, *values = f.values;
  bool converged = false;
  if (!SMALL || threadIdx.x / 32 == f.partner[0]) {
    hessenberg(H, ld, Q, f.vector, n, role);
    converged = (SMALL ? small_schur : schur)(H, ld, Q, f.rotations, n, norm, real, role);
  }
  converged = block_max(converged ? R(1) : R(0), f.scratch) != R(0);
  R least = EPSILON * (norm > R(0) ? norm : R(1));
  if (threadIdx.x < blockDim.x / 2)
    right_of_triangle(H, ld, P, n, least);
  else
    left_of_triangle(H, ld, K, n, least);
  __syncthreads();
  plain_product(n, [=](int r, int k) { return Q[place_in_q(r, k, ld, n)]; }, [=](int k, int c) { return P[k * n + c]; },
                [=](int r, int c, C s) { V[r * n + c] = s; });
  plain_product(n, [=](int r, int k) { return K[k * n + r]; },
                [=](int k, int c) { return conj(Q[place_in_q(c, k, ld, n)]); },
                [=](int r, int c, C s) { W[r * n + c] = s; });
  each(n, [=](int i) { values[i] = H[i * ld + i]; });
  __syncthreads();
  normalise(V, W, f.lengths, f.factors, n);
  return converged;
}

// Newton steps until what is left is rounding, or of second order: the change times how far W is from the inverse of V.
// False if that does not come. `basis` ends where the vectors are, in V and W or in the spare ones.
__device__ inline bool improve(Frame f, Basis& basis, bool real) {
  Basis other = {f.spare_v, f.spare_w};
  for (int step = 0; step < STEPS; ++step) {
    Change change = refine(f.A, basis, other, f.P, f.K, f.values, f.vector, f.lengths, f.scratch, f.n, real);
    normalise(other.V, other.W, f.lengths, f.factors, f.n);
    Basis swap = basis;
    basis = other;
    other = swap;
    if (!(change.moved <= R(0.1))) return false;
    if (change.relative <= R(32) * EPSILON) return true;
    if (change.moved * change.moved * change.condition <= R(4) * EPSILON) return true;
  }
  return false;
}

// V and the columns y_i = w_i^H to where they belong.
__device__ inline void hand_out(Basis basis, C* right, C* left, int n) {
  if (basis.V == right) {
    each(n * n, [=](int e) {
      int r = e / n, c = e % n;
      if (r > c) return;
      C upper = left[e], lower = left[c * n + r];
      left[e] = conj(lower);
      left[c * n + r] = conj(upper);
    });
  } else {
    each(n * n, [=](int e) {
      right[e] = basis.V[e];
      left[e] = conj(basis.W[e % n * n + e / n]);
    });
  }
}

// What the host is told: the number of the launch in whatever word applies. Two counters, on the device, of the
// matrices that were read and that are done; they are zero again after the last.
struct Report {
  long long not_finite, flagged, all_read, all_done;
};

// By one thread of a block: leave `number` in `word` if `told`, and in `last` once all `count` matrices came here.
__device__ inline void tell(volatile long long* word, bool told, volatile long long* last, unsigned* counter,
                            unsigned count, long long number) {
  if (told) {
    *word = number;
    __threadfence_system();
  }
  if (atomicInc(counter, count - 1) == count - 1) {
    __threadfence_system();
    *last = number;
  }
}

// flagged_out: 1 for a matrix whose vectors are not to be used, else 0. `report` is on the host, `count` the matrices of
// all launches with this number. Eight small blocks share a multiprocessor, which keeps a batch of a thousand in one
// wave.
extern "C" __global__ void __launch_bounds__(THREADS, SMALL ? 8 : 1)
    eigenpairs(const R* input, int complex_input, int n, R most, R spread, R closest, C* work, C* values_out,
               C* right_out, C* left_out, R* condition_out, R* flagged_out, Report* report, unsigned* counters, int count,
               long long number) {
  extern __shared__ __align__(16) unsigned char memory[];
  long long batch = blockIdx.x, area = (long long)n * n;
  bool real = !complex_input;
  right_out += batch * area, left_out += batch * area, values_out += batch * n, condition_out += batch * n;
  Frame f(memory, work + batch * 5 * area, right_out, left_out, n);
  if (threadIdx.x == 0) f.partner[0] = is_to_be_swapped();
  Scale scale = load(f, input + batch * area * (real ? 1 : 2), real);
  if (threadIdx.x == blockDim.x - 1)  // of a warp that has the least to do next
    tell(&report->not_finite, !scale.finite, &report->all_read, counters, count, number);
  Basis basis = {f.V, f.W};
  bool good = solve(f, scale.norm, real, Role(n, f.partner[0]));
  each(n, [=](int i) { values_out[i] = f.values[i]; });  // what stands if nothing better is found
  __syncthreads();
  good = good && improve(f, basis, real);
  if (good && real) {
    good = conjugate(basis.V, basis.W, f.values, f.partner, f.scratch, n);
    __syncthreads();
    normalise(basis.V, basis.W, f.lengths, f.factors, n);
  }
  good = good && !crowded(f.values, f.lengths, f.scratch, n, scale.norm, most, spread, closest);
  hand_out(basis, right_out, left_out, n);
  each(n, [=](int i) {
    C value = good ? f.values[i] : values_out[i];
    values_out[i] = make(scalbn(value.x, scale.exponent), scalbn(value.y, scale.exponent));
    condition_out[i] = f.lengths[i] >= R(1) ? fmin(f.lengths[i], R(LARGEST)) : R(1);
  });
  if (threadIdx.x == 0) {
    flagged_out[batch] = good ? R(0) : R(1);
    tell(&report->flagged, !good, &report->all_done, counters + 1, count, number);
  }
}
