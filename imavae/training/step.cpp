// A member's training steps on a CPU, in float32: gather a batch, encode, sample, decode, go back, and Adam.
//
// Everything that a step touches stays in the cache. Arrays are (feature, batch), the batch innermost and padded with
// copies of its last observation, whose gradients are set to zero. Equations and names are those of step.py.
//
// GCC's and Clang's vector extensions, without intrinsics. Don't compile it with -ffast-math: Adam looks for NaN.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>
#include <vector>

namespace {

#ifndef WIDTH
#ifdef __AVX512F__
#define WIDTH 16  // floats in a vector
#else
#define WIDTH 8
#endif
#endif
#define INLINE inline __attribute__((always_inline))

typedef float Vector __attribute__((vector_size(4 * WIDTH)));
typedef float Loose __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));  // anywhere in memory
typedef int32_t Integers __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t Bits __attribute__((vector_size(4 * WIDTH)));
typedef float Eight __attribute__((vector_size(32)));
typedef int32_t Places __attribute__((vector_size(32)));

constexpr int PADDING = 4 * WIDTH;  // the padded batch is a multiple of the widest block

INLINE Vector load(const float* p) { return *reinterpret_cast<const Loose*>(p); }
INLINE void store(float* p, Vector v) { *reinterpret_cast<Loose*>(p) = v; }
INLINE Vector splat(float x) { return x - Vector{}; }

// ---------------------------------------------------------------------------------------------------- elementary functions

// e^x within 2 ulp, by Cephes' polynomial; infinite above 88.4, at least 2^-126, NaN for NaN.
INLINE Vector exponential(Vector x) {
  x = x > 88.7f ? splat(88.7f) : x;
  x = x < -87.3f ? splat(-87.3f) : x;
  Vector n = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum's last bits are x / log 2, rounded
  const Bits power = reinterpret_cast<Bits>(n) - 0x4B400000u + 127u;
  n -= 12582912.0f;
  const Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;  // log 2 in two parts
  Vector p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * reinterpret_cast<Vector>(power << 23);
}

INLINE Vector sigmoid(Vector x) { return 1.0f / (1.0f + exponential(-x)); }

INLINE Vector magnitude(Vector x) { return reinterpret_cast<Vector>(reinterpret_cast<Bits>(x) & 0x7fffffffu); }

INLINE Vector with_sign_of(Vector x, Vector sign) {
  return reinterpret_cast<Vector>(reinterpret_cast<Bits>(x) | (reinterpret_cast<Bits>(sign) & 0x80000000u));
}

// log(1 + u) for u in [0, 1], by Cephes' polynomial on [sqrt(1/2), sqrt(2)].
INLINE Vector log_one_plus(Vector u) {
  const Vector w = 1.0f + u;
  const Integers high = w > 1.41421356f;
  const Vector r = high ? 0.5f * w - 1.0f : u, z = r * r;  // u, not w - 1: no digit of a small u is lost
  Vector p = 7.0376836292e-2f * r - 1.1514610310e-1f;
  p = p * r + 1.1676998740e-1f;
  p = p * r - 1.2420140846e-1f;
  p = p * r + 1.4249322787e-1f;
  p = p * r - 1.6668057665e-1f;
  p = p * r + 2.0000714765e-1f;
  p = p * r - 2.4999993993e-1f;
  p = p * r + 3.3333331174e-1f;
  return r + (p * r * z - 0.5f * z) + (high ? splat(0.693147181f) : splat(0.0f));
}

// log(1 + e^x)
INLINE Vector softplus(Vector x) { return (x < 0.0f ? splat(0.0f) : x) + log_one_plus(exponential(-magnitude(x))); }

INLINE Vector hyperbolic_tangent(Vector x) {
  const Vector z = x * x, a = magnitude(x);
  Vector p = -5.70498872745e-3f * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const Vector near = p * z * x + x, far = 1.0f - 2.0f / (exponential(2.0f * a) + 1.0f);
  return a > 0.625f ? with_sign_of(far, x) : near;
}

// The digamma function (log Gamma)'(x) for x > 0: recurrence up to 6, then the asymptotic series.
double digamma(double x) {
  double shift = 0;
  for (; x < 6; x += 1) shift -= 1 / x;
  const double q = 1 / (x * x);
  return shift + std::log(x) - 0.5 / x - q * (1.0 / 12 - q * (1.0 / 120 - q * (1.0 / 252 - q * (1.0 / 240 - q / 132))));
}

// ---------------------------------------------------------------------------------------------------- sums along the batch

INLINE float sum(Vector v) {
  float total = 0;
  for (int i = 0; i < WIDTH; i++) total += v[i];
  return total;
}

INLINE Eight folded(Vector v) {
  Eight part[WIDTH / 8];
  std::memcpy(part, &v, sizeof v);
  return WIDTH == 8 ? part[0] : part[0] + part[WIDTH / 8 - 1];
}

#ifdef __clang__
#define SHUFFLED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLED(a, b, ...) __builtin_shuffle(a, b, Places{__VA_ARGS__})
#endif

// The sums of four vectors, in the first four places.
INLINE Eight sums(Vector v0, Vector v1, Vector v2, Vector v3) {
  const Eight a = folded(v0), b = folded(v1), c = folded(v2), d = folded(v3);
  const Eight ab = SHUFFLED(a, b, 0, 8, 1, 9, 4, 12, 5, 13) + SHUFFLED(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
  const Eight cd = SHUFFLED(c, d, 0, 8, 1, 9, 4, 12, 5, 13) + SHUFFLED(c, d, 2, 10, 3, 11, 6, 14, 7, 15);
  const Eight all = SHUFFLED(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13) + SHUFFLED(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
  return all + SHUFFLED(all, all, 4, 5, 6, 7, 0, 1, 2, 3);
}

// ---------------------------------------------------------------------------------------------------- linear maps

enum class After { nothing, leaky_relu, leaky_relu_derivative, derivative };  // what a product's numbers go through

struct Matrix {  // W[r, k], which may be a transposed view
  const float* at;
  long row, column;  // strides
  INLINE float operator()(long r, long k) const { return at[r * row + k * column]; }
};

// out[r, b] = bias[r] + sum_k W[r, k] h[k, b] for ROWS rows, in blocks of ROWS x VECTORS registers. `given` is what
// After needs: a layer's outputs, whose signs are those of its inputs, or its derivatives.
template <int ROWS, int VECTORS, After AFTER>
INLINE void product_rows(Matrix w, const float* bias, const float* h, int inner, int batch, float* out, const float* given,
                         float slope) {
  for (int b = 0; b < batch; b += VECTORS * WIDTH) {
    Vector total[ROWS][VECTORS];
    for (int r = 0; r < ROWS; r++)
      for (int v = 0; v < VECTORS; v++) total[r][v] = splat(bias ? bias[r] : 0.0f);
    for (int k = 0; k < inner; k++) {
      Vector x[VECTORS];
      for (int v = 0; v < VECTORS; v++) x[v] = load(h + long(k) * batch + b + v * WIDTH);
      for (int r = 0; r < ROWS; r++) {
        const Vector factor = splat(w(r, k));
        for (int v = 0; v < VECTORS; v++) total[r][v] += factor * x[v];
      }
    }
    for (int r = 0; r < ROWS; r++)
      for (int v = 0; v < VECTORS; v++) {
        const long at = long(r) * batch + b + v * WIDTH;
        Vector y = total[r][v];
        if (AFTER == After::leaky_relu) y = y > 0.0f ? y : y * slope;
        if (AFTER == After::leaky_relu_derivative) y = load(given + at) > 0.0f ? y : y * slope;
        if (AFTER == After::derivative) y *= load(given + at);
        store(out + at, y);
      }
  }
}

template <After AFTER>
void product(Matrix w, const float* bias, const float* h, int rows, int inner, int batch, float* out,
             const float* given = nullptr, float slope = 0) {
  int r = 0;
  const auto next = [&](auto rows_, auto vectors) {
    const Matrix part{w.at + r * w.row, w.row, w.column};
    product_rows<rows_(), vectors(), AFTER>(part, bias ? bias + r : nullptr, h, inner, batch, out + long(r) * batch,
                                            given ? given + long(r) * batch : nullptr, slope);
    r += rows_();
  };
#define COUNT(n) std::integral_constant<int, n> {}
  while (rows - r >= 6) next(COUNT(6), COUNT(2));
  switch (rows - r) {
    case 5: next(COUNT(5), COUNT(2)); break;
    case 4: next(COUNT(4), COUNT(2)); break;
    case 3: next(COUNT(3), COUNT(4)); break;
    case 2: next(COUNT(2), COUNT(4)); break;
    case 1: next(COUNT(1), COUNT(4)); break;
  }
}

// dW[o, i] = sum_b delta[o, b] h[i, b] for OUT rows and IN <= 4 columns, in blocks of OUT x IN registers.
template <int OUT, int IN>
INLINE void outer_block(const float* delta, const float* h, int batch, float* dw, long inputs) {
  Vector total[OUT][4] = {};
  for (int b = 0; b < batch; b += WIDTH) {
    Vector d[OUT];  // with the totals and one of h, at most 16 registers
    for (int o = 0; o < OUT; o++) d[o] = load(delta + long(o) * batch + b);
    for (int i = 0; i < IN; i++) {
      const Vector x = load(h + long(i) * batch + b);
      for (int o = 0; o < OUT; o++) total[o][i] += d[o] * x;
    }
  }
  for (int o = 0; o < OUT; o++) {
    const Eight row = sums(total[o][0], total[o][1], total[o][2], total[o][3]);
    std::memcpy(dw + o * inputs, &row, IN * sizeof(float));
  }
}

template <int OUT>
INLINE void outer_rows(const float* delta, const float* h, int inputs, int batch, float* dw) {
  int i = 0;
  for (; i + 4 <= inputs; i += 4) outer_block<OUT, 4>(delta, h + long(i) * batch, batch, dw + i, inputs);
  switch (inputs - i) {
    case 3: outer_block<OUT, 3>(delta, h + long(i) * batch, batch, dw + i, inputs); break;
    case 2: outer_block<OUT, 2>(delta, h + long(i) * batch, batch, dw + i, inputs); break;
    case 1: outer_block<OUT, 1>(delta, h + long(i) * batch, batch, dw + i, inputs); break;
  }
}

// The sums of `count` <= 4 rows along the batch.
INLINE void row_sums(const float* rows, int count, int batch, float* out) {
  Vector total[4] = {};
  for (int b = 0; b < batch; b += WIDTH)
    for (int r = 0; r < count; r++) total[r] += load(rows + long(r) * batch + b);
  const Eight all = sums(total[0], total[1], total[2], total[3]);
  std::memcpy(out, &all, count * sizeof(float));
}

// out[r] = sum_b rows[r, b]
void sum_rows(const float* rows, int count, int batch, float* out) {
  int r = 0;
  for (; r + 4 <= count; r += 4) row_sums(rows + long(r) * batch, 4, batch, out + r);
  if (r < count) row_sums(rows + long(r) * batch, count - r, batch, out + r);
}

// dW = delta h^T and db = sum_b delta.
void outer(const float* delta, const float* h, int outputs, int inputs, int batch, float* dw, float* db) {
  int o = 0;
  for (; o + 3 <= outputs; o += 3) outer_rows<3>(delta + long(o) * batch, h, inputs, batch, dw + long(o) * inputs);
  if (outputs - o == 2) outer_rows<2>(delta + long(o) * batch, h, inputs, batch, dw + long(o) * inputs);
  if (outputs - o == 1) outer_rows<1>(delta + long(o) * batch, h, inputs, batch, dw + long(o) * inputs);
  sum_rows(delta, outputs, batch, db);
}

// ---------------------------------------------------------------------------------------------------- networks

enum Activation : int32_t { LEAKY_RELU, TANH, SILU, SOFTPLUS };

// h <- a(h), and a'(h) into `derivatives`.
void activate(Activation kind, float* h, float* derivatives, long count) {
  for (long i = 0; i < count; i += WIDTH) {
    const Vector x = load(h + i);
    Vector a, slope;
    if (kind == TANH) {
      a = hyperbolic_tangent(x);
      slope = 1.0f - a * a;
    } else {
      const Vector s = sigmoid(x);
      a = kind == SILU ? x * s : softplus(x);
      slope = kind == SILU ? s * (1.0f + x * (1.0f - s)) : s;
    }
    store(h + i, a);
    store(derivatives + i, slope);
  }
}

class Array {  // of so many floats, zero at first, that begins at a cache line
 public:
  explicit Array(long count) : at_(static_cast<float*>(::operator new(count * sizeof(float), ALIGNMENT))) {
    std::memset(at_, 0, count * sizeof(float));
  }
  Array(Array&& other) noexcept : at_(other.at_) { other.at_ = nullptr; }
  Array(const Array&) = delete;
  ~Array() { ::operator delete(at_, ALIGNMENT); }
  operator float*() const { return at_; }

 private:
  static constexpr std::align_val_t ALIGNMENT{64};
  float* at_;
};

// Linear maps with an activation between two of them; in a member's row, each map's W and b, one after the other.
struct Network {
  int maps, batch;
  const int32_t* sizes;  // inputs, hidden, ..., outputs
  long start;            // of its weights in a member's row
  Activation activation;
  float slope;
  std::vector<Array> outputs, derivatives;  // of each map: after its activation; a', but for the leaky ReLU

  Network(int maps, const int32_t* sizes, long start, Activation activation, float slope, int batch)
      : maps(maps), batch(batch), sizes(sizes), start(start), activation(activation), slope(slope) {
    for (int i = 0; i < maps; i++) outputs.emplace_back(long(sizes[i + 1]) * batch);
    for (int i = 0; i < maps - 1 && activation != LEAKY_RELU; i++) derivatives.emplace_back(long(sizes[i + 1]) * batch);
  }

  long weight(int i) const {  // position of W_i
    long at = start;
    for (int j = 0; j < i; j++) at += (sizes[j] + 1L) * sizes[j + 1];
    return at;
  }
  long bias(int i) const { return weight(i) + long(sizes[i]) * sizes[i + 1]; }
  long end() const { return weight(maps); }

  // h_0 = x, h_{i+1} = a(W_i h_i + b_i), and no a after the last map
  const float* forward(const float* weights, const float* x) {
    for (int i = 0; i < maps; i++) {
      const Matrix w{weights + weight(i), sizes[i], 1};
      const float* b = weights + bias(i);
      float* h = outputs[i];
      if (i < maps - 1 && activation == LEAKY_RELU) {
        product<After::leaky_relu>(w, b, x, sizes[i + 1], sizes[i], batch, h, nullptr, slope);
      } else {
        product<After::nothing>(w, b, x, sizes[i + 1], sizes[i], batch, h);
        if (i < maps - 1) activate(activation, h, derivatives[i], long(sizes[i + 1]) * batch);
      }
      x = h;
    }
    return x;
  }

  // From delta, the gradient by the outputs: dW_i = delta h_i^T, db_i = sum_b delta, and delta <- a'(h_i) * W_i^T delta.
  // `spare` is as large as delta, the widest layer; both are overwritten. The gradient by x goes to `by_x`, if given.
  void backward(const float* weights, float* gradient, const float* x, float* delta, float* spare, float* by_x) const {
    for (int i = maps - 1; i >= 0; i--) {
      const float* h = i ? outputs[i - 1] : x;
      outer(delta, h, sizes[i + 1], sizes[i], batch, gradient + weight(i), gradient + bias(i));
      const Matrix transposed{weights + weight(i), 1, sizes[i]};
      if (i == 0) {
        if (by_x) product<After::nothing>(transposed, nullptr, delta, sizes[0], sizes[1], batch, by_x);
      } else if (activation == LEAKY_RELU) {
        product<After::leaky_relu_derivative>(transposed, nullptr, delta, sizes[i], sizes[i + 1], batch, spare, h, slope);
      } else {
        product<After::derivative>(transposed, nullptr, delta, sizes[i], sizes[i + 1], batch, spare, derivatives[i - 1]);
      }
      std::swap(delta, spare);
    }
  }
};

// ---------------------------------------------------------------------------------------------------- priors

enum PriorKind : int32_t { UNIFORM, BETA, GAUSSIAN, LAPLACE };

struct Theta {  // one latent's parameters, in the form in which they are used
  float a, b;   // beta: alpha, beta; Gaussian: mean, 1 / std; Laplace: mean, 1 / scale
};

struct Point {         // at one y
  Vector z, slope;     // z(y), dz/dy
  Vector score;        // (log p)'(y)
  Vector by_theta[2];  // d log p(y) / d theta, of the free parameters in their order; without constants of theta
};

// z = low + range s(y) of a bounded prior, s the sigmoid; log p(y) = alpha log s(y) + beta log s(-y) - log B(alpha, beta)
template <bool LEARNED>
INLINE Point bounded(Vector y, Theta theta, float low, float range) {
  const Vector s = sigmoid(y);
  Point at{low + range * s, range * (s - s * s), theta.a - (theta.a + theta.b) * s, {}};
  if (LEARNED) {
    at.by_theta[0] = -theta.a * softplus(-y);
    at.by_theta[1] = -theta.b * softplus(y);
  }
  return at;
}

// log p(y) = -((y - mean) / std)^2 / 2 - log std, by log std
INLINE Point gaussian(Vector y, Theta theta) {
  const Vector standard = (y - theta.a) * theta.b;
  return {y, splat(1), -standard * theta.b, {standard * standard}};
}

// log p(y) = -|y - mean| / scale - log scale, by log scale
INLINE Point laplace(Vector y, Theta theta) {
  const Vector away = y - theta.a;
  const Vector sign = away > 0.0f ? splat(1) : away < 0.0f ? splat(-1) : 0.0f * away;
  return {y, splat(1), -sign * theta.b, {magnitude(away) * theta.b}};
}

}  // namespace

// ---------------------------------------------------------------------------------------------------- a step

extern "C" {

// The same for all members; `compiled.py` has it, too.
struct Model {
  int32_t latent, observed;  // dimensions
  int32_t encoder_maps, decoder_maps, activation, prior;
  int32_t free;           // learned parameters of each latent's prior: the last ones of theta
  int32_t learned_gamma;  // 0: gamma's gradient is zero
  const int32_t *encoder, *decoder;  // sizes: inputs, hidden, ..., outputs
  float slope;                       // of the leaky ReLU
  float low, range;                  // of a bounded prior's support
  float theta[2];                    // the prior's parameters, where learning starts, in their unconstrained form
  float decay[2];                    // of Adam's moments
};
}

namespace {

class Step {
 public:
  // Prepare steps of so many observations.
  Step(const Model& model, int count)
      : model_(model),
        count_(count),
        batch_((count + PADDING - 1) / PADDING * PADDING),
        encoder_(model.encoder_maps, model.encoder, 0, Activation(model.activation), model.slope, batch_),
        decoder_(model.decoder_maps, model.decoder, encoder_.end(), Activation(model.activation), model.slope, batch_),
        offset_(decoder_.end()),
        log_gamma_(offset_ + long(model.free) * model.latent),
        theta_(model.latent),
        x_(rows(model.observed)),
        noise_(rows(model.latent)),
        spread_(rows(model.latent)),
        z_(rows(model.latent)),
        slope_(rows(model.latent)),
        score_(rows(model.latent)),
        by_theta_(rows(std::max(1L, long(model.free) * model.latent))),
        by_z_(rows(model.latent)),
        delta_(rows(widest())),
        spare_(rows(widest())),
        gradient_(parameters() + WIDTH) {
    for (int d = 0; d < model.latent; d++) theta_[d] = used(model.theta[0], model.theta[1]);
  }

  long parameters() const { return log_gamma_ + 1; }

  // The gradient of beta KL - E_q[log p(x|z)] on the observations in `order`, of standard normal noise (latent, count).
  const float* gradient(const float* weights, const float* observations, const int32_t* order, const float* noise,
                        float beta) {
    gather(observations, order);
    copy_noise(noise);
    if (model_.free) learned_theta(weights);
    const float* code = encoder_.forward(weights, x_);
    sample(code);
    residuals(decoder_.forward(weights, z_), weights[log_gamma_]);
    decoder_.backward(weights, gradient_, z_, delta_, spare_, by_z_);
    by_code(beta / count_);
    if (model_.free) by_offset(beta / count_);
    encoder_.backward(weights, gradient_, x_, delta_, spare_, nullptr);
    return gradient_;
  }

  bool finite() const {
    Vector total{};  // the array is longer than the parameters, and zero there
    for (long i = 0; i < parameters(); i += WIDTH) total += load(gradient_ + i) * 0.0f;
    return sum(total) == 0.0f;
  }

 private:
  const Model& model_;
  const int count_, batch_;  // observations, and padded
  Network encoder_, decoder_;
  const long offset_, log_gamma_;  // positions of prior.offset and log_gamma in a member's row
  std::vector<Theta> theta_;
  const Array x_, noise_, spread_, z_, slope_, score_, by_theta_, by_z_, delta_, spare_, gradient_;

  long rows(long count) const { return count * batch_; }

  long widest() const {
    int most = 0;
    for (const Network* network : {&encoder_, &decoder_})
      for (int i = 0; i <= network->maps; i++) most = std::max(most, network->sizes[i]);
    return most;
  }

  Theta used(float first, float second) const {
    switch (model_.prior) {
      case UNIFORM: return {1, 1};  // it is the beta prior with both shapes 1
      case BETA: return {std::exp(first), std::exp(second)};
      default: return {first, std::exp(-second)};
    }
  }

  // theta = start + offset, (free, latent)
  void learned_theta(const float* weights) {
    const float* offset = weights + offset_;
    for (int d = 0; d < model_.latent; d++) {
      const float first = model_.free == 2 ? model_.theta[0] + offset[d] : model_.theta[0];
      theta_[d] = used(first, model_.theta[1] + offset[long(model_.free - 1) * model_.latent + d]);
    }
  }

  void gather(const float* observations, const int32_t* order) {
    for (int o = 0; o < model_.observed; o++) {
      float* x = x_ + rows(o);
      for (int b = 0; b < count_; b++) x[b] = observations[long(order[b]) * model_.observed + o];
      std::fill(x + count_, x + batch_, x[count_ - 1]);
    }
  }

  void copy_noise(const float* noise) {
    for (int d = 0; d < model_.latent; d++) std::memcpy(noise_ + rows(d), noise + long(d) * count_, sizeof(float) * count_);
  }

  void clear_padding(float* array, long count) const {
    if (batch_ == count_) return;
    for (long r = 0; r < count; r++) std::memset(array + rows(r) + count_, 0, sizeof(float) * (batch_ - count_));
  }

  // y = mean + sigma noise, and what the prior says of it
  void sample(const float* code) {
    for (int d = 0; d < model_.latent; d++) {
      switch (model_.prior) {
        case UNIFORM:
        case BETA:
          if (model_.free) sample_row(code, d, [&](Vector y) { return bounded<true>(y, theta_[d], model_.low, model_.range); });
          else sample_row(code, d, [&](Vector y) { return bounded<false>(y, theta_[d], model_.low, model_.range); });
          break;
        case GAUSSIAN: sample_row(code, d, [&](Vector y) { return gaussian(y, theta_[d]); }); break;
        default: sample_row(code, d, [&](Vector y) { return laplace(y, theta_[d]); });
      }
    }
  }

  template <class Prior>
  INLINE void sample_row(const float* code, int d, Prior prior) {
    const float *mean = code + rows(d), *log_square = code + rows(model_.latent + d);
    for (long b = 0; b < batch_; b += WIDTH) {
      const long at = rows(d) + b;
      const Vector spread = exponential(0.5f * load(log_square + b)) * load(noise_ + at);
      const Point point = prior(load(mean + b) + spread);
      store(spread_ + at, spread);
      store(z_ + at, point.z);
      store(slope_ + at, point.slope);
      store(score_ + at, point.score);
      for (int i = 0; i < model_.free; i++) store(by_theta_ + rows(long(i) * model_.latent + d) + b, point.by_theta[i]);
    }
  }

  // delta = gamma^2 (x_hat - x) / B; by log gamma: gamma^2 sum (x_hat - x)^2 / B - o
  void residuals(const float* x_hat, float log_gamma) {
    const float precision = std::exp(2 * log_gamma) / count_;
    Vector squares{};
    for (long i = 0; i < rows(model_.observed); i += WIDTH) store(delta_ + i, load(x_hat + i) - load(x_ + i));
    clear_padding(delta_, model_.observed);
    for (long i = 0; i < rows(model_.observed); i += WIDTH) {
      const Vector error = load(delta_ + i);
      squares += error * error;
      store(delta_ + i, error * precision);
    }
    gradient_[log_gamma_] = model_.learned_gamma ? precision * sum(squares) - model_.observed : 0.0f;
  }

  // By the encoder's outputs: d/dmean = d/dy = slope d/dz - beta score / B, d/dlog sigma^2 = (sigma noise d/dy - beta / B) / 2
  void by_code(float beta) {
    float *by_mean = delta_, *by_log_square = delta_ + rows(model_.latent);
    for (long i = 0; i < rows(model_.latent); i += WIDTH) {
      const Vector by_y = load(slope_ + i) * load(by_z_ + i) - beta * load(score_ + i);
      store(by_mean + i, by_y);
      store(by_log_square + i, 0.5f * (load(spread_ + i) * by_y - beta));
    }
    clear_padding(delta_, 2L * model_.latent);
  }

  // -beta d log p(y) / d theta, averaged over the batch
  void by_offset(float beta) {
    const long count = long(model_.free) * model_.latent;
    clear_padding(by_theta_, count);
    sum_rows(by_theta_, int(count), batch_, gradient_ + offset_);
    for (long i = 0; i < count; i++) {
      const float constant = by_theta_constant(theta_[i % model_.latent], i / model_.latent);
      gradient_[offset_ + i] = -beta * (gradient_[offset_ + i] + count_ * constant);
    }
  }

  // The part of d log p(y) / d theta that doesn't depend on y: a beta prior's normaliser, or -log of the scale
  float by_theta_constant(Theta theta, long which) const {
    if (model_.prior != BETA) return -1;
    const double shape = which == 0 ? theta.a : theta.b;
    return float(shape * (digamma(double(theta.a) + theta.b) - digamma(shape)));
  }
};

// m <- m + (1 - decay_1) (g - m), v <- decay_2 v + (1 - decay_2) g^2, w <- w - size m / (sqrt(v) + epsilon)
void adam(float* __restrict__ weights, float* __restrict__ first, float* __restrict__ second,
          const float* __restrict__ gradient, long count, const float* decay, float size, float epsilon) {
  const float rest = 1 - decay[0], fade = decay[1], gain = 1 - decay[1];
  for (long i = 0; i < count; i++) {
    const float g = gradient[i], m = first[i] + rest * (g - first[i]), v = fade * second[i] + gain * g * g;
    const float update = m / (std::sqrt(v) + epsilon) * size;
    first[i] = m;
    second[i] = v;
    weights[i] -= update - update == 0.0f ? update : 0.0f;  // moments may overflow
  }
}

}  // namespace

extern "C" {

// Number of weights of a member.
int64_t parameters(const Model* model) { return Step(*model, 1).parameters(); }

// So many steps of one member, whose row of weights and of Adam's moments are changed. A step takes `batch` observations
// by `order`, noise (latent, batch), and Adam's step size and epsilon. Return the number of steps before a gradient was not
// finite: from there on the row stays as it is.
int64_t train(const Model* model, float* weights, float* first, float* second, const float* observations,
              const int32_t* order, const float* noise, const float* sizes, const float* epsilons, int64_t steps,
              int32_t batch, float beta) {
  Step step(*model, batch);
  for (int64_t t = 0; t < steps; t++) {
    const float* gradient =
        step.gradient(weights, observations, order + t * batch, noise + t * model->latent * batch, beta);
    if (!step.finite()) return t;
    adam(weights, first, second, gradient, step.parameters(), model->decay, sizes[t], epsilons[t]);
  }
  return steps;
}
}
