// Group normalisation on a CPU for inference, after adding an offset to each channel. It reads an
// image [B, H, W, C] twice and writes it once, all channels of a pixel at a time. PyTorch's kernel
// reads the channels of one group at a time, which for small images are few adjacent numbers.
#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <c10/util/Exception.h>

// The compiler makes one version for each vector width, and the program picks one when it starts.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 12
#define FOR_EACH_PROCESSOR                                                                         \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif
#define INLINE static inline __attribute__((always_inline))

namespace {

// Pixels that are summed before the sums are merged.
constexpr int64_t BLOCK = 64;
// How many numbers make another thread worthwhile.
constexpr int64_t GRAIN = 1 << 14;

INLINE float upcast(float x) { return x; }
INLINE float upcast(uint16_t x) {
  uint32_t bits = uint32_t{x} << 16;
  float wide;
  memcpy(&wide, &bits, sizeof wide);
  return wide;
}

INLINE void narrow(float x, float &result) { result = x; }
INLINE void narrow(float x, uint16_t &result) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  result = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  if (x != x)
    result = 0x7fc0;
}

// The mean of each channel and the sum of squared distances from it, with buffers for computing
// them.
struct Moments {
  std::vector<float> mean, distance, sum, square;

  explicit Moments(int64_t channels)
      : mean(channels), distance(channels), sum(channels), square(channels) {}
};

// Merges the moments of `more` pixels into those of `pixels` pixels of the same channels; `pixels`
// may be zero.
INLINE void join(float *mean, float *distance, int64_t pixels, const float *other_mean,
                 const float *other_distance, int64_t more, int64_t channels) {
  auto share = static_cast<float>(more) / static_cast<float>(pixels + more);
  auto weight = share * static_cast<float>(pixels);
  for (int64_t c = 0; c < channels; ++c) {
    float apart = other_mean[c] - mean[c];
    mean[c] += apart * share;
    distance[c] += other_distance[c] + apart * apart * weight;
  }
}

template <typename Element>
INLINE void find(Moments &moments, const Element *x, int64_t pixels, int64_t channels) {
  float *mean = moments.mean.data(), *distance = moments.distance.data();
  float *sum = moments.sum.data(), *square = moments.square.data();
  std::fill_n(mean, channels, 0.0f);
  std::fill_n(distance, channels, 0.0f);
  for (int64_t first = 0; first < pixels; first += BLOCK) {
    auto count = std::min(BLOCK, pixels - first);
    // Distances from the first pixel keep all digits even if the mean is large.
    const Element *pivot = x + first * channels;
    std::fill_n(sum, channels, 0.0f);
    std::fill_n(square, channels, 0.0f);
    for (int64_t pixel = 1; pixel < count; ++pixel) {
      const Element *row = pivot + pixel * channels;
      for (int64_t c = 0; c < channels; ++c) {
        float apart = upcast(row[c]) - upcast(pivot[c]);
        sum[c] += apart;
        square[c] += apart * apart;
      }
    }
    auto inverse = 1.0f / static_cast<float>(count);
    for (int64_t c = 0; c < channels; ++c) {
      float apart = sum[c] * inverse;
      square[c] -= sum[c] * apart;
      sum[c] = upcast(pivot[c]) + apart;
    }
    join(mean, distance, first, sum, square, count, channels);
  }
}

template <typename Element>
INLINE void scale(const Element *x, Element *y, int64_t pixels, int64_t channels,
                  const float *factor, const float *addend) {
  for (int64_t pixel = 0; pixel < pixels; ++pixel, x += channels, y += channels)
    for (int64_t c = 0; c < channels; ++c)
      narrow(upcast(x[c]) * factor[c] + addend[c], y[c]);
}

FOR_EACH_PROCESSOR
void find_moments(Moments &moments, const float *x, int64_t pixels, int64_t channels) {
  find(moments, x, pixels, channels);
}

FOR_EACH_PROCESSOR
void find_moments(Moments &moments, const uint16_t *x, int64_t pixels, int64_t channels) {
  find(moments, x, pixels, channels);
}

FOR_EACH_PROCESSOR
void apply(const float *x, float *y, int64_t pixels, int64_t channels, const float *factor,
           const float *addend) {
  scale(x, y, pixels, channels, factor, addend);
}

FOR_EACH_PROCESSOR
void apply(const uint16_t *x, uint16_t *y, int64_t pixels, int64_t channels, const float *factor,
           const float *addend) {
  scale(x, y, pixels, channels, factor, addend);
}

// Calls body(first, end) for parts of 0..count on the threads of libtorch; `grain` numbers are not
// divided. It goes through an operation inside libtorch: the parallel loop in its headers would
// start a second thread pool if libtorch ships another OpenMP than the compiler.
template <typename Body> void in_parallel(int64_t count, int64_t grain, Body body) {
  auto places = at::empty({count}, at::kByte);
  auto start = static_cast<char *>(places.mutable_data_ptr());
  auto iterator = at::TensorIterator::nullary_op(places);
  iterator.for_each(
      [&](char **data, const int64_t *, int64_t size) {
        auto first = data[0] - start;
        body(first, first + size);
      },
      grain);
}

// The parameters of a normalisation; `shift_BC` may be null.
struct Parameters {
  const float *shift_BC, *weight_C, *beta_C;
  int64_t groups;
  double epsilon;
};

// y = factor · x + addend, the normalisation of x + shift for image `b`, into sum and square.
void find_line(Moments &moments, int64_t pixels, int64_t channels, const Parameters &parameters,
               int64_t b) {
  float *mean = moments.mean.data(), *factor = moments.sum.data(), *addend = moments.square.data();
  const float *distance = moments.distance.data();
  const float *shift = parameters.shift_BC ? parameters.shift_BC + b * channels : nullptr;
  auto width = channels / parameters.groups;
  if (shift)
    for (int64_t c = 0; c < channels; ++c)
      mean[c] += shift[c];
  for (int64_t first = 0; first < channels; first += width) {
    float center = 0, spread = 0, total = 0;
    for (auto c = first; c < first + width; ++c)
      center += mean[c];
    center /= static_cast<float>(width);
    for (auto c = first; c < first + width; ++c) {
      float apart = mean[c] - center;
      spread += apart * apart;
      total += distance[c];
    }
    auto variance = (total / static_cast<float>(pixels) + spread) / static_cast<float>(width);
    auto inverse = 1.0f / std::sqrt(variance + static_cast<float>(parameters.epsilon));
    for (auto c = first; c < first + width; ++c) {
      factor[c] = inverse * parameters.weight_C[c];
      addend[c] = ((shift ? shift[c] : 0.0f) - center) * factor[c] + parameters.beta_C[c];
    }
  }
}

template <typename Element>
void normalize_images(const Element *x, Element *y, int64_t batch, int64_t pixels,
                        int64_t channels, const Parameters &parameters) {
  auto image = pixels * channels;
  if (batch >= at::get_num_threads() || image <= GRAIN) {
    auto grain = std::max<int64_t>(1, GRAIN / image);
    in_parallel(batch, grain, [&](int64_t first, int64_t end) {
      Moments moments(channels);
      for (auto b = first; b < end; ++b) {
        find_moments(moments, x + b * image, pixels, channels);
        find_line(moments, pixels, channels, parameters, b);
        apply(x + b * image, y + b * image, pixels, channels, moments.sum.data(),
              moments.square.data());
      }
    });
    return;
  }
  // Few images: threads divide each image.
  auto parts = std::min<int64_t>(at::get_num_threads(), pixels);
  auto start = [&](int64_t part) { return pixels * part / parts; };
  std::vector<Moments> of_parts(parts, Moments(channels));
  for (int64_t b = 0; b < batch; ++b) {
    in_parallel(parts, 1, [&](int64_t first, int64_t end) {
      for (auto part = first; part < end; ++part)
        find_moments(of_parts[part], x + b * image + start(part) * channels,
                     start(part + 1) - start(part), channels);
    });
    auto &all = of_parts[0];
    for (int64_t part = 1; part < parts; ++part)
      join(all.mean.data(), all.distance.data(), start(part), of_parts[part].mean.data(),
           of_parts[part].distance.data(), start(part + 1) - start(part), channels);
    find_line(all, pixels, channels, parameters, b);
    in_parallel(parts, 1, [&](int64_t first, int64_t end) {
      for (auto part = first; part < end; ++part) {
        auto place = b * image + start(part) * channels;
        apply(x + place, y + place, start(part + 1) - start(part), channels, all.sum.data(),
              all.square.data());
      }
    });
  }
}

at::Tensor as_f32(const at::Tensor &tensor) { return tensor.to(at::kFloat).contiguous(); }

} // namespace

bool can_normalize_on_cpu(const at::Tensor &like) {
  auto type = like.scalar_type();
  return like.is_cpu() && (type == at::kFloat || type == at::kBFloat16);
}

at::Tensor normalize_on_cpu(const at::Tensor &x_BCHW, const std::optional<at::Tensor> &shift_BC,
                            const at::Tensor &weight_C, const at::Tensor &beta_C, int64_t groups,
                            double epsilon, bool silu) {
  auto x = x_BCHW.contiguous(at::MemoryFormat::ChannelsLast);
  auto batch = x.size(0), channels = x.size(1), pixels = x.size(2) * x.size(3);
  TORCH_CHECK(can_normalize_on_cpu(x) && x.numel() > 0 && groups > 0 && channels % groups == 0 &&
                  weight_C.numel() == channels && beta_C.numel() == channels &&
                  (!shift_BC || shift_BC->numel() == batch * channels),
              "normalisation of ", x.sizes(), " in ", groups, " groups");
  auto y = at::empty_like(x, at::MemoryFormat::ChannelsLast);
  auto weight = as_f32(weight_C), beta = as_f32(beta_C);
  auto shift = shift_BC ? as_f32(*shift_BC) : at::Tensor();
  Parameters parameters{shift.defined() ? shift.const_data_ptr<float>() : nullptr,
                        weight.const_data_ptr<float>(),
                        beta.const_data_ptr<float>(),
                        groups,
                        epsilon};
  if (x.scalar_type() == at::kFloat)
    normalize_images(x.const_data_ptr<float>(), y.mutable_data_ptr<float>(), batch, pixels,
                       channels, parameters);
  else
    normalize_images(static_cast<const uint16_t *>(x.const_data_ptr()),
                       static_cast<uint16_t *>(y.mutable_data_ptr()), batch, pixels, channels,
                       parameters);
  if (silu)
    at::silu_(y); // libtorch's exponential is faster than the compiler's
  return y;
}
