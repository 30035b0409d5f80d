// line <- line (I - scale v v^H) from entry `from` on
__device__ inline void reflect(C* line, int step, const C* v, R scale, int from, int n) {
  C sum = make(R(0), R(0));
#pragma unroll 4
  for (int j = from; j < n; ++j) sum = fused(sum, line[j * step], v[j]);
  sum = -scale * sum;
#pragma unroll 4
  for (int j = from; j < n; ++j) line[j * step] = fused(line[j * step], sum, conj(v[j]));
}

// What a thread works at: row or column `own` of H, or row `own` of Q. With `swapped` the second half of the block has H.
struct Role {
  bool of_q;
  int index, own;  // of those who work at the Schur form, or at the same matrix

  __device__ Role(int n, bool swapped) {
    int threads = SMALL ? 32 : blockDim.x, half = SMALL ? 16 : threads / 2;
    index = SMALL ? threadIdx.x % 32 : swapped ? (threadIdx.x + half) % threads : threadIdx.x;
    of_q = index >= half;
    own = of_q ? index - half : index;
  }
};

// Warps go to the four schedulers of a multiprocessor in turn, and those that have H have the most to do: of blocks of
// two or four warps every second pair or block is to be swapped.
__device__ inline bool is_to_be_swapped() {
  unsigned warp;
  asm volatile("mov.u32 %0, %%warpid;" : "=r"(warp));
  return warp >> 2 & 1;
}

// Entry (r, k) of Q, which is transposed unless SMALL.
__device__ inline int place_in_q(int r, int k, int ld, int n) { return SMALL ? r * ld + k : k * n + r; }

// P = I - scale v v^H that takes the column (head, tail) to (value, 0, ...); v is (first, tail).
struct Reflection {
  C first, value;
  R scale;

  __device__ Reflection(C head, R tail) {
    R norm = sqrt(square(head) + tail), length = modulus(head);
    C phase = length * length > TINY ? (R(1) / length) * head : make(R(1), R(0));
    scale = R(1) / (norm * norm + length * norm);
    first = head + norm * phase;
    value = -norm * phase;
  }
};

// H <- P H P, Q <- Q P with P for every column, whose entries under the subdiagonal are not read again. If SMALL, by one
// warp.
__device__ void hessenberg(C* H, int ld, C* Q, C* v, int n, Role role) {
  int lane = threadIdx.x % 32, workers = SMALL ? 32 : blockDim.x;
  for (int k = 0; k + 2 < n; ++k) {
    R tail = R(0);
    for (int i = k + 2 + lane; i < n; i += 32) tail += square(H[i * ld + k]);
    tail = warp_sum(tail);
    if (tail <= TINY) continue;  // the same in every thread
    Reflection p(H[(k + 1) * ld + k], tail);
    solver_barrier();
    for (int i = k + 1 + role.index; i < n; i += workers) v[i] = i == k + 1 ? p.first : H[i * ld + k];
    solver_barrier();
    if (!role.of_q) {
      if (role.own == k) H[(k + 1) * ld + k] = p.value;
      if (role.own > k && role.own < n) {
        C sum = make(R(0), R(0));
        C* column = H + role.own;
#pragma unroll 4
        for (int i = k + 1; i < n; ++i) sum = fused(sum, conj(v[i]), column[i * ld]);
        sum = -p.scale * sum;
#pragma unroll 4
        for (int i = k + 1; i < n; ++i) column[i * ld] = fused(column[i * ld], sum, v[i]);
      }
    }
    if (SMALL || !role.of_q) half_barrier(blockDim.x / 64);
    if (SMALL) {
      if (role.own < n) reflect((role.of_q ? Q : H) + role.own * ld, 1, v, p.scale, k + 1, n);
    } else if (role.own < n) {  // two branches, so that either knows the kind of memory it is in
      if (role.of_q)
        reflect(Q + role.own, n, v, p.scale, k + 1, n);
      else
        reflect(H + role.own * ld, 1, v, p.scale, k + 1, n);
    }
    solver_barrier();
  }
}

// First row of the unreduced block that ends at `last`; every warp finds it by itself.
__device__ int block_start(const C* H, int ld, int last, R floor) {
  int lane = threadIdx.x % 32;
  for (int base = last; base > 0; base -= 32) {
    int k = base - lane;
    bool negligible = false;
    if (k > 0) {
      R below = size(H[k * ld + k - 1]);
      R around = size(H[(k - 1) * ld + k - 1]) + size(H[k * ld + k]);
      negligible = below <= EPSILON * around || below <= floor;
    }
    unsigned found = __ballot_sync(ALL, negligible);
    if (found) return base - (__ffs(found) - 1);
  }
  return 0;
}

// Eigenvalue of the last 2x2 block that is nearer to its last entry (Wilkinson 1965).
__device__ C wilkinson(const C* H, int ld, int last) {
  C a = H[(last - 1) * ld + last - 1], b = H[(last - 1) * ld + last];
  C c = H[last * ld + last - 1], d = H[last * ld + last];
  C half = R(0.5) * (a - d), off = b * c;
  C disc = root(half * half + off);
  if (half.x * disc.x + half.y * disc.y < R(0)) disc = make(-disc.x, -disc.y);
  C sum = half + disc;
  if (square(sum) <= TINY) return d;
  return d - off * reciprocal(sum);
}

__device__ inline void rotate_rows(Rotation g, C& above, C below, C& stored) {
  stored = fused(g.alpha * above, g.beta, below);
  above = fused(conj(g.alpha) * below, make(-g.beta.x, g.beta.y), above);
}

__device__ inline void rotate_columns(Rotation g, C& left, C right, C& stored) {
  stored = fused(conj(g.beta) * right, conj(g.alpha), left);
  left = fused(g.alpha * right, make(-g.beta.x, -g.beta.y), left);
}

// The rotation that makes (pivot, sub) into (length, 0), and the next pivot from the two entries beside it, which every
// lane works out for itself: a rotation waits for the last one's square root and for no shuffle.
__device__ inline Rotation next_rotation(C& pivot, C sub, C beside_pivot, C beside_sub) {
  R total = square(pivot) + square(sub), inverse = inverse_root(fmax(total, R(TINY)));
  bool none = total <= TINY;
  C determinant = fused(pivot * beside_sub, make(-sub.x, -sub.y), beside_pivot);
  C alpha = none ? make(R(1), R(0)) : inverse * conj(pivot);
  C beta = none ? make(R(0), R(0)) : inverse * conj(sub);
  pivot = none ? beside_sub : inverse * determinant;
  return Rotation{alpha, beta};
}

// Rotations [first, last) of the wavefront: this warp owns their columns, finds them, applies them to its columns. What is
// loaded ahead after the last row is not used.
__device__ C find_rotations(C* H, int ld, int n, int first, int last, C carry, Rotation* g, int column) {
  bool writes = column >= first && column < n;
  C *row = H + first * ld + min(column, n - 1), *diagonal = H + first * ld + first;
  C pivot = make(__shfl_sync(ALL, carry.x, first % 32), __shfl_sync(ALL, carry.y, first % 32));
  C next = row[ld], next_sub = diagonal[ld], next_diagonal = diagonal[ld + 1];
#pragma unroll 2
  for (int k = first; k < last; ++k) {
    C beside = make(__shfl_sync(ALL, carry.x, (k + 1) % 32), __shfl_sync(ALL, carry.y, (k + 1) % 32));
    C below = next, top;
    Rotation turn = next_rotation(pivot, next_sub, beside, next_diagonal);
    next = row[2 * ld], next_sub = diagonal[2 * ld + 1], next_diagonal = diagonal[2 * ld + 2];
    if (column % 32 == 0) g[k] = turn;
    rotate_rows(turn, carry, below, top);
    if (writes) row[0] = top;
    row += ld, diagonal += ld + 1;
  }
  return carry;
}

__device__ C apply_to_rows(C* H, int ld, int n, int first, int last, C carry, const Rotation* g, int column) {
  int safe = min(column, n - 1);
  for (int base = first; base < last; base += 4) {
    C below[4];
#pragma unroll
    for (int u = 0; u < 4; ++u) below[u] = H[min(base + u + 1, last) * ld + safe];
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      int k = base + u;
      if (k < last) {
        C top;
        rotate_rows(g[k], carry, below[u], top);
        if (column < n) H[k * ld + column] = top;
      }
    }
  }
  return carry;
}

// R G^H, row by row, from rotation `base` on; `diagonal` is the row's number in R, where it begins, or -1 in Q.
__device__ void apply_to_columns(C* line, int diagonal, int base, int first, int last, bool writes, const Rotation* g) {
  line += base;
  C carry = diagonal <= first ? line[0] : make(R(0), R(0)), right = line[1];
  Rotation turn = g[base];
#pragma unroll 2
  for (int k = base; k < last; ++k) {
    C stored, here = right;
    Rotation now = turn;
    right = line[2], turn = g[k + 1];
    rotate_columns(now, carry, here, stored);
    if (diagonal > k + 1) carry = make(R(0), R(0));
    if (writes) line[0] = stored;
    ++line;
  }
  if (writes) line[0] = carry;
}

__device__ void apply_to_factor(C* Q, int n, int own, int first, int last, const Rotation* g) {
  if (own >= n) return;
  C carry = Q[first * n + own];
  for (int base = first; base < last; base += 4) {
    C right[4];
#pragma unroll
    for (int u = 0; u < 4; ++u) right[u] = Q[min(base + u + 1, last) * n + own];
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      int k = base + u;
      if (k < last) {
        C stored;
        rotate_columns(g[k], carry, right[u], stored);
        Q[k * n + own] = stored;
      }
    }
  }
  Q[last * n + own] = carry;
}

// One sweep on rows first..last of H, by the warps of H; all columns and rows of H are carried along. Entries under the
// subdiagonal hold anything and are not read.
__device__ void sweep(C* H, int ld, int n, int first, int last, C shift, Rotation* g, int column) {
  int warp = column / 32, warps = (n + 31) / 32;
  C carry = make(R(0), R(0)), *row = H + min(column, n - 1) * ld;
  bool shifted = column >= first && column <= last;
  if (shifted) row[column] = row[column] - shift;
  half_barrier(warps);
  if (column >= first && column < n) carry = H[first * ld + column];
  for (int stage = first / 32; stage <= (last - 1) / 32; ++stage) {
    int from = max(first, 32 * stage), to = min(last, 32 * stage + 32);
    if (warp == stage) carry = find_rotations(H, ld, n, from, to, carry, g, column);
    half_barrier(warps);
    if (warp > stage) carry = apply_to_rows(H, ld, n, from, to, carry, g, column);
  }
  if (column >= last && column < n) H[last * ld + column] = carry;
  half_barrier(warps);
  if (column <= last) apply_to_columns(row, column, max(first, 32 * warp - 1), first, last, true, g);
  if (shifted) row[column] = row[column] + shift;
}

// The same for n <= 16 and Q too, by one warp: lane j has column j of H, then row j; lane 16 + i has row i of Q.
__device__ void small_sweep(C* H, int ld, C* Q, int n, int first, int last, C shift, Rotation* g, Role role) {
  int own = role.own, row = role.of_q ? -1 : own;
  bool shifted = row >= first && row <= last;
  if (shifted) H[own * ld + own] = H[own * ld + own] - shift;
  __syncwarp();
  C carry = H[first * ld + min(role.index, n - 1)];
  carry = find_rotations(H, ld, n, first, last, carry, g, role.index);
  if (row >= first && row < n) H[last * ld + own] = carry;
  __syncwarp();
  C* line = (role.of_q ? Q : H) + min(own, n - 1) * ld;
  apply_to_columns(line, row, first, first, last, own < n && row <= last, g);
  if (shifted) H[own * ld + own] = H[own * ld + own] + shift;
}

// Where the iteration is: rows first..last of H are to be swept with `shift`.
struct Iteration {
  int first, last, tries;
  bool due;  // the conjugate of the eigenvalue found last is to be tried
  C shift;
};

// The next block and shift, which every thread finds by itself; false if all eigenvalues are found. For a real matrix the
// conjugate of an eigenvalue is tried as the next shift.
__device__ bool next(Iteration& at, const C* H, int ld, R norm, bool real) {
  while (at.last > 0) {  // the rule falls back to the norm where the relative one does not bite
    at.first = block_start(H, ld, at.last, at.tries > 20 ? EPSILON * norm : R(sqrt(R(TINY))));
    if (at.first < at.last) break;
    at.due = real && !at.due && fabs(H[at.last * ld + at.last].y) > R(64) * EPSILON * norm;
    --at.last;
    at.tries = 0;
  }
  if (at.last <= 0) return false;
  int last = at.last;
  bool again = at.due && at.tries == 0;
  at.shift = again ? conj(H[(last + 1) * ld + last + 1]) : wilkinson(H, ld, last);
  if (at.tries % 10 == 9) at.shift = H[last * ld + last] + make(R(0.75) * size(H[last * ld + last - 1]), R(0));
  ++at.tries;
  return true;
}

// Schur form of the Hessenberg matrix H, at most 30 sweeps an eigenvalue on average; false if they did not do.
__device__ bool schur(C* H, int ld, C* Q, Rotation* rotations, int n, R norm, bool real, Role role) {
  int side = 0, old_first = 0, old_last = 0;
  bool busy = true;
  Iteration at = {0, n - 1, 0, false, make(R(0), R(0))};
  for (int sweeps = 0; sweeps <= 30 * n && busy; ++sweeps) {
    __syncthreads();
    busy = next(at, H, ld, norm, real);
    __syncthreads();
    if (role.of_q)
      apply_to_factor(Q, n, role.own, old_first, old_last, rotations + (side ^ 1) * n);
    else if (busy)
      sweep(H, ld, n, at.first, at.last, at.shift, rotations + side * n, role.index);
    old_first = at.first;
    old_last = busy ? at.last : at.first;
    side ^= 1;
  }
  __syncthreads();
  if (role.of_q && busy) apply_to_factor(Q, n, role.own, old_first, old_last, rotations + (side ^ 1) * n);
  return !busy;
}

// The same for n <= 16, by one warp.
__device__ bool small_schur(C* H, int ld, C* Q, Rotation* rotations, int n, R norm, bool real, Role role) {
  bool busy = true;
  Iteration at = {0, n - 1, 0, false, make(R(0), R(0))};
  for (int sweeps = 0; sweeps <= 30 * n && busy; ++sweeps) {
    __syncwarp();
    busy = next(at, H, ld, norm, real);
    __syncwarp();
    if (busy) small_sweep(H, ld, Q, n, at.first, at.last, at.shift, rotations, role);
  }
  __syncwarp();
  return !busy;
}

__device__ inline C away_from_zero(C a, R least) { return size(a) < least ? make(least, R(0)) : a; }

// Columns of X: right eigenvectors of the triangle T, unit on the diagonal. By the warps of H.
__device__ void right_of_triangle(const C* T, int ld, C* X, int n, R least) {
  int column = threadIdx.x, top = min(n - 1, column / 32 * 32 + 31);
  if (column >= n) return;
  C own = T[column * ld + column], last = make(R(0), R(0));
  for (int i = n - 1; i > column; --i) X[i * n + column] = last;
  for (int i = top; i >= 0; --i) {
    C even = i + 1 <= column ? T[i * ld + i + 1] * last : make(R(0), R(0)), odd = make(R(0), R(0));
#pragma unroll 4
    for (int j = i + 2; j <= column; ++j) {
      C swap = fused(even, T[i * ld + j], X[j * n + column]);
      even = odd;
      odd = swap;
    }
    C value = make(R(1), R(0));
    if (i < column) value = (even + odd) * reciprocal(away_from_zero(own - T[i * ld + i], least));
    if (i <= column) {
      X[i * n + column] = value;
      last = value;
    }
  }
}

// Rows of Y, held transposed: left eigenvectors of T, unit on the diagonal. By the warps of Q.
__device__ void left_of_triangle(const C* T, int ld, C* Y, int n, R least) {
  int row = threadIdx.x - 32 * ((n + 31) / 32);
  if (row >= n) return;
  C own = T[row * ld + row], last = make(R(1), R(0));
  for (int j = 0; j < row; ++j) Y[j * n + row] = make(R(0), R(0));
  Y[row * n + row] = last;
  for (int j = row + 1; j < n; ++j) {
    C even = T[(j - 1) * ld + j] * last, odd = make(R(0), R(0));
#pragma unroll 4
    for (int i = row; i < j - 1; ++i) {
      C swap = fused(even, T[i * ld + j], Y[i * n + row]);
      even = odd;
      odd = swap;
    }
    last = (even + odd) * reciprocal(away_from_zero(own - T[j * ld + j], least));
    Y[j * n + row] = last;
  }
}
