// What a ConvNeXt block computes besides matrix products. Included by row_gemm_impl.h.

// x / 2 * (1 + erf(x / sqrt(2))), in place. erf(z) / z is a polynomial in z^2 below 3.9, beyond
// which erf is 1 in float: fitted here, errors below 3e-7.
inline typename Vec<float>::type gelu_of(typename Vec<float>::type x) {
  typedef typename Vec<float>::type vec;
  constexpr float kEnd = 3.9f;
  constexpr float kTerms[] = {
      0.362583991f, -0.181011538f, 0.134689042f, -0.109514177f, 0.0907062627f,
      -0.0740129473f, 0.0576667299f, -0.0417209798f, 0.0298779278f, -0.0222792647f,
      0.0124065298f, -0.00336028646f, 0.00281900572f, -0.00408510235f, 0.00164507723f};
  constexpr int kCount = sizeof(kTerms) / sizeof(kTerms[0]);
  const vec zero = {}, end = zero + kEnd;
  const vec z = x * 0.70710678118654752f;
  const vec u = z * z * (2 / (kEnd * kEnd)) - 1;
  vec erf = zero + kTerms[kCount - 1];
  LAUD_UNROLL
  for (int i = kCount - 2; i >= 0; i--) erf = erf * u + kTerms[i];
  erf = erf * z;
  erf = z >= end ? zero + 1.0f : erf;
  erf = z <= -end ? zero - 1.0f : erf;
  return x * 0.5f * (erf + 1.0f);
}

inline void gelu(float* row, int64_t size) {
  using vec = Vec<float>;
  int64_t i = 0;
  for (; i + vec::size <= size; i += vec::size) vec::store(row + i, gelu_of(vec::load(row + i)));
  if (i == size) return;
  typename vec::type last = {};
  for (int64_t j = i; j < size; j++) last[j - i] = row[j];
  last = gelu_of(last);
  for (int64_t j = i; j < size; j++) row[j] = last[j - i];
}

inline void gelu(double* row, int64_t size) {
  for (int64_t i = 0; i < size; i++)
    row[i] *= 0.5 * (1 + __builtin_erf(row[i] * 0.70710678118654752));
}

template <typename T>
T sum_of(typename Vec<T>::type values) {
  T sum = 0;
  for (int i = 0; i < Vec<T>::size; i++) sum += values[i];
  return sum;
}

// Layer norm without weights, in place.
template <typename T>
void normalize(T* row, int64_t size, T eps) {
  using vec = Vec<T>;
  const int64_t whole = size / vec::size * vec::size;
  typename vec::type sums = {};
  T rest = 0;
  for (int64_t i = 0; i < whole; i += vec::size) sums += vec::load(row + i);
  for (int64_t i = whole; i < size; i++) rest += row[i];
  const T mean = (sum_of<T>(sums) + rest) / size;
  sums = sums - sums;
  rest = 0;
  for (int64_t i = 0; i < whole; i += vec::size) {
    const typename vec::type d = vec::load(row + i) - mean;
    sums += d * d;
  }
  for (int64_t i = whole; i < size; i++) rest += (row[i] - mean) * (row[i] - mean);
  const T scale = 1 / T(__builtin_sqrt((sum_of<T>(sums) + rest) / size + eps));
  for (int64_t i = 0; i < whole; i += vec::size)
    vec::store(row + i, (vec::load(row + i) - mean) * scale);
  for (int64_t i = whole; i < size; i++) row[i] = (row[i] - mean) * scale;
}

// Copies `lanes` channels from `first` on of a piece's window side by side, zeros beyond the map.
template <typename T>
void copy_lanes(const DepthwisePiece<T>& p, int64_t first, int64_t lanes) {
  using vec = Vec<T>;
  const int64_t reach = p.kernel / 2, pitch = p.columns + p.kernel - 1;
  T* to = p.window;
  for (int64_t line = 0; line < p.lines + p.kernel - 1; line++) {
    const int64_t y = p.y + line - reach;
    const T* const row = p.map + (y * p.width + p.x - reach) * p.channels + first;
    for (int64_t i = 0; i < pitch; i++, to += vec::size) {
      const int64_t x = p.x + i - reach;
      typename vec::type values = {};
      if (y >= 0 && y < p.height && x >= 0 && x < p.width) {
        const T* const from = row + i * p.channels;
        if (lanes >= vec::size) values = vec::load(from);
        else
          for (int64_t lane = 0; lane < lanes; lane++) values[lane] = from[lane];
      }
      vec::store(to, values);
    }
  }
}

// L lines of C columns of one vector of channels.
template <typename T, int L, int C>
inline void depthwise_tile(const DepthwisePiece<T>& p, int64_t line, int64_t column,
                           int64_t first, const T* taps) {
  using vec = Vec<T>;
  const int64_t pitch = (p.columns + p.kernel - 1) * vec::size;
  typename vec::type acc[L][C];
  LAUD_UNROLL
  for (int l = 0; l < L; l++)
    LAUD_UNROLL
    for (int c = 0; c < C; c++) acc[l][c] = vec::load(p.bias + first);
  const T* window = p.window + line * pitch + column * vec::size;
  for (int64_t ky = 0; ky < p.kernel; ky++, window += pitch)
    for (int64_t kx = 0; kx < p.kernel; kx++, taps += vec::size) {
      const typename vec::type weight = vec::load(taps);
      LAUD_UNROLL
      for (int l = 0; l < L; l++)
        LAUD_UNROLL
        for (int c = 0; c < C; c++)
          acc[l][c] += vec::load(window + l * pitch + (kx + c) * vec::size) * weight;
    }
  const int64_t lanes = p.channels - first;
  LAUD_UNROLL
  for (int l = 0; l < L; l++)
    LAUD_UNROLL
    for (int c = 0; c < C; c++) {
      T* const to = p.out + (line + l) * p.line_pitch + (column + c) * p.channels + first;
      if (lanes >= vec::size) vec::store(to, acc[l][c]);
      else
        for (int64_t lane = 0; lane < lanes; lane++) to[lane] = acc[l][c][lane];
    }
}

template <typename T, int L>
void depthwise_lines(const DepthwisePiece<T>& p, int64_t line, int64_t first, const T* taps) {
  int64_t column = 0;
  if (L == 1)
    for (; column + 8 <= p.columns; column += 8)
      depthwise_tile<T, L, 8>(p, line, column, first, taps);
  for (; column + 4 <= p.columns; column += 4)
    depthwise_tile<T, L, 4>(p, line, column, first, taps);
  for (; column + 2 <= p.columns; column += 2)
    depthwise_tile<T, L, 2>(p, line, column, first, taps);
  if (column < p.columns) depthwise_tile<T, L, 1>(p, line, column, first, taps);
}

template <typename T>
void depthwise(const DepthwisePiece<T>& p) {
  constexpr int64_t size = Vec<T>::size;
  for (int64_t first = 0; first < p.channels; first += size) {
    const T* const taps = p.taps + first * p.kernel * p.kernel;
    copy_lanes(p, first, p.channels - first);
    int64_t line = 0;
    for (; line + 2 <= p.lines; line += 2) depthwise_lines<T, 2>(p, line, first, taps);
    if (line < p.lines) depthwise_lines<T, 1>(p, line, first, taps);
  }
}
