// line <- line (I - scale v v^H) from entry `from` on
__device__ inline void reflect(C* line, int step, const C* v, R scale, int from, int n) {
  C sum = make(R(0), R(0));
#pragma unroll 4
  for (int j = from; j < n; ++j) sum = fused(sum, line[j * step], v[j]);
  sum = -scale * sum;
#pragma unroll 4
  for (int j = from; j < n; ++j) line[j * step] = fused(line[j * step], sum, conj(v[j]));
}

// What a thread works at: row or column `own` of H, or row `own` of Q, whose entries are `step` apart.
struct Role {
  bool of_q;
  int own, step;
  C* row;

  __device__ Role(C* H, int ld, C* Q, int n) {
    int half = SMALL ? 16 : (n + 31) / 32 * 32;
    of_q = threadIdx.x >= half;
    own = of_q ? threadIdx.x - half : threadIdx.x;
    int safe = min(own, n - 1);
    step = of_q && !SMALL ? n : 1;
    row = of_q ? (SMALL ? Q + safe * ld : Q + safe) : H + safe * ld;
  }
};

// Entry (r, k) of Q, which is transposed unless SMALL.
__device__ inline int place_in_q(int r, int k, int ld, int n) { return SMALL ? r * ld + k : k * n + r; }

// H <- P H P, Q <- Q P with P = I - scale v v^H for every column.
__device__ void hessenberg(C* H, int ld, C* Q, C* v, int n) {
  int lane = threadIdx.x % 32, workers = SMALL ? 32 : blockDim.x;
  Role role(H, ld, Q, n);
  for (int k = 0; k + 2 < n; ++k) {
    R tail = R(0);
    for (int i = k + 2 + lane; i < n; i += 32) tail += square(H[i * ld + k]);
    tail = warp_sum(tail);
    if (tail <= TINY) continue;  // the same in every thread; entries under the subdiagonal are not read again
    C head = H[(k + 1) * ld + k];
    R norm = sqrt(square(head) + tail), length = modulus(head);
    C phase = length * length > TINY ? (R(1) / length) * head : make(R(1), R(0));
    R scale = R(1) / (norm * norm + length * norm);
    solver_barrier();
    for (int i = k + 1 + threadIdx.x; i < n; i += workers) v[i] = i == k + 1 ? head + norm * phase : H[i * ld + k];
    solver_barrier();
    if (!role.of_q) {
      if (role.own == k) H[(k + 1) * ld + k] = -norm * phase;
      if (role.own > k && role.own < n) {
        C sum = make(R(0), R(0));
        C* column = H + role.own;
#pragma unroll 4
        for (int i = k + 1; i < n; ++i) sum = fused(sum, conj(v[i]), column[i * ld]);
        sum = -scale * sum;
#pragma unroll 4
        for (int i = k + 1; i < n; ++i) column[i * ld] = fused(column[i * ld], sum, v[i]);
      }
    }
    if (SMALL || !role.of_q) half_barrier(blockDim.x / 64);
    if (SMALL) {
      if (role.own < n) reflect(role.row, 1, v, scale, k + 1, n);
    } else if (role.own < n) {  // two branches, so that either knows the kind of memory it is in
      if (role.of_q)
        reflect(Q + role.own, n, v, scale, k + 1, n);
      else
        reflect(H + role.own * ld, 1, v, scale, k + 1, n);
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

// Rotations [first, last) of the wavefront: this warp owns their columns, finds them, applies them to its columns.
__device__ C find_rotations(C* H, int ld, int n, int first, int last, int bottom, C shift, C carry, Rotation* g) {
  int column = threadIdx.x;
  int safe = min(column, n - 1);
  C next = H[(first + 1) * ld + safe], next_sub = H[(first + 1) * ld + first];
  for (int k = first; k < last; ++k) {
    C below = next, sub = next_sub, top;
    int ahead = min(k + 2, bottom);
    next = H[ahead * ld + safe];
    next_sub = H[ahead * ld + ahead - 1];
    if (column == k + 1) below = below - shift;
    C pivot = make(__shfl_sync(ALL, carry.x, k % 32), __shfl_sync(ALL, carry.y, k % 32));
    R total = square(pivot) + square(sub);
    R inverse = inverse_root(fmax(total, R(TINY)));
    Rotation turn = {inverse * conj(pivot), inverse * conj(sub)};
    if (total <= TINY) turn = {make(R(1), R(0)), make(R(0), R(0))};
    if (column % 32 == 0) g[k] = turn;
    rotate_rows(turn, carry, below, top);
    if (column >= k && column < n) H[k * ld + column] = column == k ? make(total * inverse, R(0)) : top;
  }
  return carry;
}

__device__ C apply_to_rows(C* H, int ld, int n, int first, int last, C shift, C carry, const Rotation* g) {
  int column = threadIdx.x, safe = min(column, n - 1);
  for (int base = first; base < last; base += 4) {
    C below[4];
#pragma unroll
    for (int u = 0; u < 4; ++u) below[u] = H[min(base + u + 1, last) * ld + safe];
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      int k = base + u;
      if (k < last) {
        C top;
        if (column == k + 1) below[u] = below[u] - shift;
        rotate_rows(g[k], carry, below[u], top);
        if (column < n) H[k * ld + column] = top;
      }
    }
  }
  return carry;
}

// R G^H + shift I, row by row, from rotation `base` on; row -1 stands for a row of Q, a row after `last` does nothing.
__device__ void apply_to_columns(C* line, int row, int base, int first, int last, C shift, const Rotation* g) {
  C carry = make(R(0), R(0));
  if (row <= first) carry = line[first];
  for (; base < last; base += 4) {
    C right[4];
#pragma unroll
    for (int u = 0; u < 4; ++u) right[u] = line[min(base + u + 1, last)];
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      int k = base + u;
      if (k < last && row <= last && k + 1 >= row) {
        C stored;
        rotate_columns(g[k], carry, right[u], stored);
        if (k == row && row >= first) stored = stored + shift;
        line[k] = stored;
      }
    }
  }
  if (row <= last) line[last] = row == last ? carry + shift : carry;
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

// One sweep on rows first..last of H, by the warps of H; all columns and rows of H are carried along. If SMALL, Q too.
__device__ void sweep(C* H, int ld, Role role, int n, int first, int last, C shift, Rotation* g) {
  int column = threadIdx.x, warp = column / 32, warps = (n + 31) / 32;
  C carry = make(R(0), R(0));
  if (column >= first && column < n) carry = H[first * ld + column];
  if (column == first) carry = carry - shift;
  for (int stage = first / 32; stage <= (last - 1) / 32; ++stage) {
    int from = max(first, 32 * stage), to = min(last, 32 * stage + 32);
    if (warp == stage) carry = find_rotations(H, ld, n, from, to, last, shift, carry, g);
    half_barrier(warps);
    if (warp > stage) carry = apply_to_rows(H, ld, n, from, to, shift, carry, g);
  }
  if (column >= last && column < n) H[last * ld + column] = carry;
  half_barrier(warps);
  int row = SMALL && role.of_q ? -1 : role.own;
  int base = SMALL ? first : max(first, 32 * warp - 1);
  if (SMALL)
    apply_to_columns(role.row, role.own < n ? row : n, base, first, last, shift, g);
  else
    apply_to_columns(H + min(row, n - 1) * ld, row, base, first, last, shift, g);
}

// Schur form of the Hessenberg matrix H, at most 30 sweeps an eigenvalue on average; false if they did not do. For a
// real matrix the conjugate of an eigenvalue is tried as the next shift.
__device__ bool schur(C* H, int ld, C* Q, Rotation* rotations, int n, R norm, bool real) {
  int last = n - 1, tries = 0, side = 0, old_first = 0, old_last = 0;
  bool done = false, due = false;
  Role role(H, ld, Q, n);
  for (int sweeps = 0; sweeps <= 30 * n && !done; ++sweeps) {
    int first = 0;
    solver_barrier();
    while (last > 0) {  // the rule falls back to the norm where the relative one does not bite
      first = block_start(H, ld, last, tries > 20 ? EPSILON * norm : R(sqrt(R(TINY))));
      if (first < last) break;
      due = real && !due && fabs(H[last * ld + last].y) > R(64) * EPSILON * norm;
      --last;
      tries = 0;
    }
    done = last <= 0;
    C shift = make(R(0), R(0));
    if (!done) {
      shift = due && tries == 0 ? conj(H[(last + 1) * ld + last + 1]) : wilkinson(H, ld, last);
      if (tries % 10 == 9) shift = H[last * ld + last] + make(R(0.75) * size(H[last * ld + last - 1]), R(0));
      ++tries;
    }
    solver_barrier();
    Rotation* g = rotations + side * n;
    if (SMALL) {
      if (!done) sweep(H, ld, role, n, first, last, shift, g);
      continue;
    }
    if (role.of_q) {
      apply_to_factor(Q, n, role.own, old_first, old_last, rotations + (side ^ 1) * n);
    } else if (!done) {
      sweep(H, ld, role, n, first, last, shift, g);
    }
    old_first = first;
    old_last = done ? first : last;
    side ^= 1;
  }
  solver_barrier();
  if (!SMALL && role.of_q && !done)
    apply_to_factor(Q, n, role.own, old_first, old_last, rotations + (side ^ 1) * n);
  return done;
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
