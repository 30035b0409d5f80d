// The line c0 + c1 lambda that is taken off the conjugated cotangents, of values scaled by a power of two. It is fitted
// with weights kappa^2 and used where that lessens eps sum kappa_i^2 |g_i|, the error of what is left; a matrix with
// clusters asks for a close fit, as the line moves their members by more than the mean.
struct Line {
  C constant, slope;
};

__device__ inline C scaled_by(C a, int exponent) { return make(scalbn(a.x, exponent), scalbn(a.y, exponent)); }

// One warp; every lane gets the line and every warp finds the same. rest(i) is what is left of unit(i).
template <class Unit, class Value>
__device__ Line fit(Unit unit, Value value, const R* condition, const R* clusters, int n, R norm, int degree) {
  int lane = threadIdx.x % 32;
  C zero = make(R(0), R(0)), centre = zero, mean = zero, covariance = zero;
  R most = R(0), weights = R(0), spread = R(0), largest = R(0);
  for (int i = lane; i < n; i += 32) most = fmax(most, condition[i]), largest = fmax(largest, modulus(value(i)));
  most = warp_max(most), largest = warp_max(largest);
  auto relative = [=](int i) { return condition[i] / most; };
  for (int i = lane; i < n; i += 32) {
    R weight = relative(i) * relative(i);
    weights += weight;
    centre = centre + weight * value(i);
    mean = mean + weight * unit(i);
  }
  R inverse = R(1) / warp_sum(weights);
  centre = inverse * warp_sum(centre);
  mean = inverse * warp_sum(mean);
  for (int i = lane; i < n; i += 32) {
    C away = value(i) - centre;
    R weight = relative(i) * relative(i) * inverse;
    spread += weight * square(away);
    covariance = fused(covariance, weight * conj(away), unit(i) - mean);
  }
  spread = warp_sum(spread), covariance = warp_sum(covariance);
  bool flat = degree == 0 || spread <= EPSILON * EPSILON * largest * largest;
  C slope = flat ? zero : (R(1) / spread) * covariance;
  C constant = mean - slope * centre;
  R error = R(0), plain = R(0), loose = R(0), together = R(0);
  for (int i = lane; i < n; i += 32) {
    R before = modulus(unit(i)), after = modulus(unit(i) - constant - slope * value(i));
    R taken = before + modulus(constant) + modulus(slope) * modulus(value(i)), weight = relative(i) * relative(i);
    if (after > R(8) * EPSILON * taken) error += weight * after + relative(i) * taken / most;
    plain += weight * before;
    loose = fmax(loose, after > R(8) * EPSILON * taken ? after : R(0));
    if (clusters && clusters[i] != R(i)) together = R(1);
  }
  error = warp_sum(error), plain = warp_sum(plain), loose = warp_max(loose), together = warp_max(together);
  R fixed = (modulus(constant) * sqrt(R(n)) + modulus(slope) * norm) / (most * most);
  bool used = error + fixed < R(0.5) * plain && (together == R(0) || loose <= R(1e-6));
  return used ? Line{constant, slope} : Line{zero, zero};
}

// sum_i g_i y_i v_i^H with the cotangents g averaged over clusters and the line given as (c0 I + c1 A)^H; the real part
// for a real matrix. Sixteen rows a block; `clusters` holds the index of the first member of each value's
// cluster, or is null where each is its own.
extern "C" __global__ void __launch_bounds__(128)
    gradient(const R* input, int complex_input, int n, const C* values, const C* right, const C* left,
             const R* condition, const R* clusters, const C* cotangent, int degree, R* output) {
  extern __shared__ __align__(16) unsigned char memory[];
  C* rest = (C*)memory;
  C* averaged = rest + n;
  R* scratch = (R*)(averaged + n);
  long long batch = blockIdx.x, area = (long long)n * n;
  int first = 16 * blockIdx.y;
  input += batch * area * (complex_input ? 2 : 1);
  output += batch * area * (complex_input ? 2 : 1);
  values += batch * n, cotangent += batch * n, condition += batch * n;
  if (clusters) clusters += batch * n;
  right += batch * area, left += batch * area;
  auto entry = [=](long long e) { return complex_input ? make(input[2 * e], input[2 * e + 1]) : make(input[e], R(0)); };
  R largest = R(0), height = R(0);
  each(area, [&](int e) { largest = fmax(largest, fmax(fabs(entry(e).x), fabs(entry(e).y))); });
  each(n, [&](int i) { height = fmax(height, fmax(fabs(cotangent[i].x), fabs(cotangent[i].y))); });
  largest = block_max(largest, scratch);
  height = block_max(height, scratch);
  int exponent = largest > R(0) && largest <= R(LARGEST) ? ilogb(largest) + 1 : 0;
  int lift = height > R(0) && height <= R(LARGEST) ? ilogb(height) + 1 : 0;
  R squares = R(0);
  each(area, [&](int e) { squares += square(scaled_by(entry(e), -exponent)); });
  R norm = sqrt(block_sum(squares, scratch));
  auto value = [=](int i) { return scaled_by(values[i], -exponent); };
  auto unit = [=](int i) { return conj(scaled_by(cotangent[i], -lift)); };
  Line line = fit(unit, value, condition, clusters, n, norm, degree);
  bool used = line.constant.x != R(0) || line.constant.y != R(0) || line.slope.x != R(0) || line.slope.y != R(0);
  each(n, [=](int i) {
    C left_over = unit(i) - line.constant - line.slope * value(i);
    R taken = modulus(unit(i)) + modulus(line.constant) + modulus(line.slope) * modulus(value(i));
    bool rounding = used && modulus(left_over) <= R(8) * EPSILON * taken;
    rest[i] = rounding ? make(R(0), R(0)) : conj(left_over);
  });
  __syncthreads();
  each(n, [=](int i) {
    averaged[i] = rest[i];
    if (!clusters) return;
    C sum = make(R(0), R(0));
    int members = 0;
    for (int j = 0; j < n; ++j)
      if (clusters[j] == clusters[i]) sum = sum + rest[j], ++members;
    averaged[i] = (R(1) / R(members)) * sum;
  });
  __syncthreads();
  product<4, Plain>(
      n, first, min(first + 16, n), [](Plain&, int, int) {},
      [=](int r, int k) { return left[r * n + k] * averaged[k]; }, [=](int k, int c) { return conj(right[c * n + k]); },
      [=](int r, int c, C s) {
        s = fused(s, conj(line.slope), conj(scaled_by(entry(c * n + r), -exponent)));
        if (r == c) s = s + conj(line.constant);
        s = scaled_by(s, lift);
        int e = r * n + c;
        if (complex_input)
          output[2 * e] = s.x, output[2 * e + 1] = s.y;
        else
          output[e] = s.x;
      });
}
