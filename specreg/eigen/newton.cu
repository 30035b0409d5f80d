// Columns of V to unit length, rows of W so that w_i v_i = 1; lengths[i] = |w_i|.
__device__ void normalise(C* V, C* W, R* lengths, R* factors, int n) {
  each(n, [&](int i) {
    R sum = R(0), most = R(0);
    for (int k = 0; k < n; ++k) most = fmax(most, size(V[k * n + i]));
    R inverse = R(1) / most;
    for (int k = 0; k < n; ++k) sum += square(inverse * V[k * n + i]);
    factors[i] = inverse / sqrt(sum);
  });
  __syncthreads();
  each(n * n, [&](int e) { V[e] = factors[e % n] * V[e]; });
  __syncthreads();
  int lane = threadIdx.x % LANES;
  for (int i = threadIdx.x / LANES; i < n; i += blockDim.x / LANES) {
    C dot = make(R(0), R(0));
    for (int k = lane; k < n; k += LANES) dot = fused(dot, W[i * n + k], V[k * n + i]);
    dot = reciprocal(row_sum(dot));
    R sum = R(0);
    for (int k = lane; k < n; k += LANES) {
      C entry = dot * W[i * n + k];
      W[i * n + k] = entry;
      sum += square(entry);
    }
    sum = row_sum(sum);
    if (lane == 0) lengths[i] = sqrt(sum);
  }
  __syncthreads();
}

struct Basis {
  C *V, *W;
};

struct Change {
  R moved, relative, condition;  // largest change of an entry over its vector's length, that over kappa_i, and kappa_i
};

// R = A V - V diag(values) and L = W A - diag(values) W
template <bool A_REAL>
__device__ void right_residual(const C* A, const C* V, const C* values, C* P, int n) {
  typedef Precise<A_REAL, false> Sum;
  product<2, Sum>(
      n, 0, n, [=](Sum& sum, int r, int c) { sum.begin(make(-V[r * n + c].x, -V[r * n + c].y), values[c]); },
      [=](int r, int k) { return A[r * n + k]; }, [=](int k, int c) { return V[k * n + c]; },
      [=](int r, int c, C s) { P[r * n + c] = s; });
}

template <bool A_REAL>
__device__ void left_residual(const C* A, const C* W, const C* values, C* P, int n) {
  typedef Precise<false, A_REAL> Sum;
  product<2, Sum>(
      n, 0, n, [=](Sum& sum, int r, int c) { sum.begin(make(-values[r].x, -values[r].y), W[r * n + c]); },
      [=](int r, int k) { return W[r * n + k]; }, [=](int k, int c) { return A[k * n + c]; },
      [=](int r, int c, C s) { P[r * n + c] = s; });
}

__device__ inline R finite_or_one(R a) { return a <= R(LARGEST) ? a : R(1); }

// One Newton step on all vectors, each side with its own residual, from `old` to `next`; `lengths` are the old ones.
__device__ Change refine(const C* A, Basis old, Basis next, C* P, C* K, C* values, C* shifts, const R* lengths,
                         R* scratch, int n, bool real) {
  R moved = R(0), relative = R(0), condition = R(0);
  auto note = [&](R size, int i) {
    size = finite_or_one(size);
    moved = fmax(moved, size);
    relative = fmax(relative, finite_or_one(size / lengths[i]));
  };
  if (real)
    right_residual<true>(A, old.V, values, P, n);
  else
    right_residual<false>(A, old.V, values, P, n);
  __syncthreads();
  plain_product(n, [=](int r, int k) { return old.W[r * n + k]; }, [=](int k, int c) { return P[k * n + c]; },
                [=](int r, int c, C s) {
                  if (r == c) shifts[r] = s;
                  K[r * n + c] = r == c ? make(R(0), R(0)) : s * reciprocal(values[c] - values[r]);
                });
  __syncthreads();
  plain_product(n, [=](int r, int k) { return old.V[r * n + k]; }, [=](int k, int c) { return K[k * n + c]; },
                [&](int r, int c, C s) {
                  next.V[r * n + c] = old.V[r * n + c] + s;
                  note(size(s), c);
                });
  if (real)
    left_residual<true>(A, old.W, values, P, n);
  else
    left_residual<false>(A, old.W, values, P, n);
  __syncthreads();
  plain_product(n, [=](int r, int k) { return P[r * n + k]; }, [=](int k, int c) { return old.V[k * n + c]; },
                [=](int r, int c, C s) {
                  K[r * n + c] = r == c ? make(R(0), R(0)) : s * reciprocal(values[r] - values[c]);
                });
  __syncthreads();
  plain_product(n, [=](int r, int k) { return K[r * n + k]; }, [=](int k, int c) { return old.W[k * n + c]; },
                [&](int r, int c, C s) {
                  next.W[r * n + c] = old.W[r * n + c] + s;
                  note(size(s) / lengths[r], r);
                });
  each(n, [&](int i) {
    values[i] = values[i] + shifts[i];
    condition = fmax(condition, lengths[i]);
  });
  Change change = {block_max(moved, scratch), R(0), R(0)};
  change.relative = block_max(relative, scratch);
  change.condition = block_max(condition, scratch);
  return change;
}

// A real matrix has real values with real vectors and conjugate pairs; makes them so. False if they do not pair up.
__device__ bool conjugate(C* V, C* W, C* values, int* partner, R* scratch, int n) {
  int lane = threadIdx.x % LANES;
  R alone = R(0);
  each(n, [=](int i) {
    C own = conj(values[i]);
    R least = size(values[i] - own);
    int best = i;
    for (int j = 0; j < n; ++j) {
      R distance = size(values[j] - own);
      if (distance < least) least = distance, best = j;
    }
    partner[i] = best;
  });
  __syncthreads();
  for (int i = threadIdx.x / LANES; i < n; i += blockDim.x / LANES) {
    int j = partner[i];
    if (partner[j] != i) {
      alone = R(1);
    } else if (j == i) {
      C sum = make(R(0), R(0));
      for (int k = lane; k < n; k += LANES) sum = fused(sum, V[k * n + i], V[k * n + i]);
      C turn = root(row_sum(sum));
      turn = (R(1) / modulus(turn)) * turn;
      for (int k = lane; k < n; k += LANES) {
        V[k * n + i] = make((conj(turn) * V[k * n + i]).x, R(0));
        W[i * n + k] = make((turn * W[i * n + k]).x, R(0));
      }
      if (lane == 0) values[i].y = R(0);
    } else if (values[i].y > values[j].y || (values[i].y == values[j].y && i < j)) {
      for (int k = lane; k < n; k += LANES) {
        V[k * n + j] = conj(V[k * n + i]);
        W[j * n + k] = conj(W[i * n + k]);
      }
      C mean = R(0.5) * (values[i] + conj(values[j]));
      __syncwarp(row_mask());
      if (lane == 0) values[i] = mean, values[j] = conj(mean);
    }
  }
  return block_max(alone, scratch) == R(0);
}

// True if some value's rounding error, spread * kappa * norm, reaches its neighbour, or a value is within closest * norm
// of another, or some condition number is above `most`.
__device__ bool crowded(const C* values, const R* lengths, R* scratch, int n, R norm, R most, R spread, R closest) {
  R found = R(0);
  each(n, [&](int i) {
    R gap = R(1e30);
    for (int j = 0; j < n; ++j)
      if (j != i) gap = fmin(gap, square(values[j] - values[i]));
    bool alone = fmax(spread * lengths[i], closest) * norm < sqrt(gap);
    if (!alone || !(lengths[i] <= most)) found = R(1);
  });
  return block_max(found, scratch) != R(0);
}
