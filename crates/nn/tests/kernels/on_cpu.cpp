// Runs csrc/kernels.cu on a CPU, each thread of a block as a thread, and compares it with the
// formulas in f64. Compiled by tests/kernels.rs, once for each dtype; exits with 1 if a bound is
// exceeded.
#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

using std::max;
using std::min;

// What CUDA gives a kernel.
struct Dimensions {
  unsigned x, y;
};
thread_local Dimensions threadIdx, blockIdx;
Dimensions blockDim, gridDim;
float shared[1 << 14];

class Barrier {
public:
  void reset(unsigned count) { expected = count; }
  void wait() {
    std::unique_lock lock(mutex);
    auto round = rounds;
    if (++arrived == expected) {
      arrived = 0;
      ++rounds;
      all_here.notify_all();
    } else {
      all_here.wait(lock, [&] { return rounds != round; });
    }
  }

private:
  std::mutex mutex;
  std::condition_variable all_here;
  unsigned expected = 0, arrived = 0, rounds = 0;
} barrier;

#define __device__
#define __global__
#define __shared__
#define __launch_bounds__(threads)
#define __syncthreads() barrier.wait()
#define __expf std::exp

float __uint_as_float(unsigned bits) {
  float number;
  memcpy(&number, &bits, sizeof number);
  return number;
}

unsigned __float_as_uint(float number) {
  unsigned bits;
  memcpy(&bits, &number, sizeof bits);
  return bits;
}

float __fdividef(float numerator, float denominator) { return numerator / denominator; }

#if FORMAT == 2
// f16 as the processor of a GPU converts it: rounded to the nearest, ties to even.
float upcast(unsigned short half) {
  unsigned exponent = (half >> 10) & 31u, fraction = half & 1023u;
  float magnitude = exponent == 31 ? (fraction ? NAN : INFINITY)
                    : exponent     ? std::ldexp(1024.0f + fraction, (int)exponent - 25)
                                   : std::ldexp((float)fraction, -24);
  return half & 0x8000u ? -magnitude : magnitude;
}

unsigned short narrow(float number) {
  unsigned short sign = __float_as_uint(number) >> 31 << 15;
  float magnitude = std::fabs(number);
  if (std::isnan(number))
    return 0x7fff;
  if (magnitude >= 65520.0f)
    return sign | 0x7c00u;
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  // Steps of numbers this large: 11 bits, and no less than the smallest number. In the default mode
  // nearbyint rounds ties to even. A carry into the next exponent is the addition's own.
  int step = max(exponent - 11, -24);
  unsigned steps = (unsigned)std::nearbyint(std::ldexp(magnitude, -step));
  return sign | (unsigned short)(((step + 24) << 10) + steps);
}
#endif

#include "kernels.cu"

template <typename Body> void launch(unsigned columns, unsigned rows, unsigned threads, Body body) {
  gridDim = {columns, rows};
  blockDim = {threads, 1};
  barrier.reset(threads);
  std::vector<std::thread> all;
  for (unsigned thread = 0; thread < threads; ++thread)
    all.emplace_back([=] {
      threadIdx = {thread, 0};
      for (unsigned y = 0; y < rows; ++y)
        for (unsigned x = 0; x < columns; ++x) {
          blockIdx = {x, y};
          body();
          barrier.wait();
        }
    });
  for (auto &thread : all)
    thread.join();
}

std::mt19937 generator(1);

std::vector<float> random_numbers(size_t count, float mean) {
  std::normal_distribution<float> normal(mean);
  std::vector<float> numbers(count);
  for (auto &number : numbers)
    number = normal(generator);
  return numbers;
}

std::vector<Element> random_elements(size_t count, float mean) {
  std::vector<Element> elements(count);
  auto numbers = random_numbers(count, mean);
  std::transform(numbers.begin(), numbers.end(), elements.begin(), narrow);
  return elements;
}

// The errors that one rounding to the dtype and f32 sums of these sizes may cause.
const double ROUNDING = FORMAT == 0 ? 1e-6 : FORMAT == 1 ? 1.0 / 256 : 1.0 / 2048;
const double SUMMING = 1e-4;
int failures = 0;

struct Error {
  double largest = 0, scale = 0;

  void add(double found, double expected) {
    auto apart = std::abs(found - expected);
    if (!(apart <= largest)) // a NaN too
      largest = apart;
    scale = max(scale, std::abs(expected));
  }

  void check(const char *what, double bound) const {
    if (largest <= bound * max(scale, 1.0))
      return;
    printf("%s: %g apart, numbers up to %g\n", what, largest, scale);
    ++failures;
  }
};

void normalisation(int pixels, int channels, int groups, int splits, int lanes, bool silu,
                   bool with_offset) {
  const int batch = 2, width = channels / groups;
  Sizes sizes{pixels, channels, groups, splits, channels / 8, lanes, /*parameters_are_f32=*/1,
              silu,   1e-5f};
  auto x = random_elements(batch * pixels * channels, 10);
  auto dy = random_elements(x.size(), 0), shift = random_elements(batch * channels, 0);
  auto bias = random_numbers(channels, 0), weight = random_numbers(channels, 1),
       beta = random_numbers(channels, 0);
  auto shift_or_not = with_offset ? shift.data() : nullptr;
  auto bias_or_not = with_offset ? bias.data() : nullptr;
  const auto NOT_WRITTEN = NAN;
  std::vector<float> moment(batch * splits * groups * 2, NOT_WRITTEN),
      statistics(batch * groups * 2, NOT_WRITTEN), sums(batch * splits * 3 * channels, NOT_WRITTEN),
      totals(batch * 3 * channels, NOT_WRITTEN), offsets(batch * channels, NOT_WRITTEN);
  std::vector<Element> y(x.size(), narrow(NOT_WRITTEN)), dx(y);
  std::fill(std::begin(shared), std::end(shared), NOT_WRITTEN);
  unsigned threads = sizes.columns * lanes, of_totals = 32;
  launch(splits, batch, threads,
         [&] { moments(x.data(), shift_or_not, bias_or_not, moment.data(), sizes); });
  launch(splits, batch, threads, [&] {
    normalize(x.data(), shift_or_not, bias_or_not, weight.data(), beta.data(), moment.data(),
              statistics.data(), y.data(), sizes);
  });
  launch(splits, batch, threads, [&] {
    gradient_sums(x.data(), shift_or_not, bias_or_not, weight.data(), beta.data(),
                  statistics.data(), dy.data(), sums.data(), sizes);
  });
  launch((3 * channels + of_totals - 1) / of_totals, batch, of_totals,
         [&] { gradient_totals(sums.data(), totals.data(), sizes); });
  launch(splits, batch, threads, [&] {
    gradient(x.data(), shift_or_not, bias_or_not, weight.data(), beta.data(), statistics.data(),
             dy.data(), totals.data(), dx.data(), offsets.data(), sizes);
  });

  // The reference stores rounded parameters, the network in training f32: not a bit may differ.
  auto held = [](const std::vector<float> &numbers) {
    std::vector<Element> elements(numbers.size());
    std::transform(numbers.begin(), numbers.end(), elements.begin(), narrow);
    return elements;
  };
  auto held_bias = held(bias), held_weight = held(weight), held_beta = held(beta);
  const void *held_bias_or_not = with_offset ? held_bias.data() : nullptr;
  auto of_reference = sizes;
  of_reference.parameters_are_f32 = 0;
  std::vector<Element> y_of_reference(y.size(), narrow(NOT_WRITTEN));
  launch(splits, batch, threads,
         [&] { moments(x.data(), shift_or_not, held_bias_or_not, moment.data(), of_reference); });
  launch(splits, batch, threads, [&] {
    normalize(x.data(), shift_or_not, held_bias_or_not, held_weight.data(), held_beta.data(),
              moment.data(), statistics.data(), y_of_reference.data(), of_reference);
  });
  if (memcmp(y.data(), y_of_reference.data(), y.size() * sizeof(Element)) != 0) {
    printf("a reference computes other bits\n");
    ++failures;
  }

  auto rounded = [](float number) -> double { return upcast(narrow(number)); };
  Error of_y, of_dx, of_weight, of_beta, of_offset;
  std::vector<double> weight_gradient(channels), beta_gradient(channels);
  for (int b = 0; b < batch; ++b)
    for (int group = 0; group < groups; ++group) {
      auto place = [&](int pixel, int c) { return (size_t(b) * pixels + pixel) * channels + c; };
      auto each = [&](auto body) {
        for (int pixel = 0; pixel < pixels; ++pixel)
          for (int c = group * width; c < (group + 1) * width; ++c)
            body(pixel, c);
      };
      auto moved = [&](int pixel, int c) {
        double value = upcast(x[place(pixel, c)]);
        return with_offset ? value + upcast(shift[b * channels + c]) + rounded(bias[c]) : value;
      };
      double count = double(pixels) * width, mean = 0, variance = 0;
      each([&](int pixel, int c) { mean += moved(pixel, c) / count; });
      each([&](int pixel, int c) { variance += std::pow(moved(pixel, c) - mean, 2) / count; });
      double inverse_std = 1 / std::sqrt(variance + 1e-5);
      auto normal = [&](int pixel, int c) { return (moved(pixel, c) - mean) * inverse_std; };
      auto before = [&](int pixel, int c) {
        double value = normal(pixel, c) * rounded(weight[c]) + rounded(beta[c]);
        double s = 1 / (1 + std::exp(-value)), slope = upcast(dy[place(pixel, c)]);
        return silu ? slope * s * (1 + value * (1 - s)) : slope;
      };
      double even = 0, along = 0;
      each([&](int pixel, int c) {
        double value = normal(pixel, c) * rounded(weight[c]) + rounded(beta[c]);
        of_y.add(upcast(y[place(pixel, c)]), silu ? value / (1 + std::exp(-value)) : value);
        double slope = before(pixel, c);
        weight_gradient[c] += slope * normal(pixel, c);
        beta_gradient[c] += slope;
        even += slope * rounded(weight[c]) / count;
        along += slope * rounded(weight[c]) * normal(pixel, c) / count;
      });
      std::vector<double> offset_gradient(channels);
      each([&](int pixel, int c) {
        double expected = inverse_std * (rounded(weight[c]) * before(pixel, c) - even -
                                               along * normal(pixel, c));
        of_dx.add(upcast(dx[place(pixel, c)]), expected);
        offset_gradient[c] += expected;
      });
      for (int c = group * width; c < (group + 1) * width; ++c)
        of_offset.add(offsets[b * channels + c], offset_gradient[c]);
    }
  for (int c = 0; c < channels; ++c) {
    auto total = [&](int kind) {
      return double(totals[kind * channels + c]) + totals[(3 + kind) * channels + c];
    };
    of_weight.add(total(1), weight_gradient[c]);
    of_beta.add(total(0), beta_gradient[c]);
  }
  int before_these = failures;
  of_y.check("y", ROUNDING + SUMMING);
  of_dx.check("dx", ROUNDING + SUMMING);
  of_weight.check("gradient of the weight", SUMMING);
  of_beta.check("gradient of beta", SUMMING);
  of_offset.check("gradient of the offset", SUMMING);
  if (failures > before_these)
    printf("  in %d pixels, %d channels, %d groups, %d splits, %d lanes, silu %d, offset %d\n", pixels,
           channels, groups, splits, lanes, silu, with_offset);
}

void element_by_element() {
  const int channels = 24, packs = 5 * channels / 8;
  auto value = random_elements(8 * packs, 0), gate = random_elements(8 * packs, 0),
       slope = random_elements(8 * packs, 0);
  auto bias = random_numbers(channels, 0);
  std::vector<Element> result(8 * packs), of_value(8 * packs), of_gate(8 * packs), sum(8 * packs);
  auto pack = [](std::vector<Element> &elements) { return reinterpret_cast<Pack *>(elements.data()); };
  launch(2, 1, 8, [&] { gated_gelu(pack(value), pack(gate), pack(result), packs); });
  launch(2, 1, 8, [&] {
    gated_gelu_gradient(pack(value), pack(gate), pack(slope), pack(of_value), pack(of_gate), packs);
  });
  launch(2, 1, 8, [&] {
    add_biased(pack(value), pack(gate), bias.data(), /*bias_is_f32=*/1, pack(sum), channels, packs);
  });
  std::vector<Element> held_bias(channels), sum_of_reference(8 * packs);
  std::transform(bias.begin(), bias.end(), held_bias.begin(), narrow);
  launch(2, 1, 8, [&] {
    add_biased(pack(value), pack(gate), held_bias.data(), /*bias_is_f32=*/0, pack(sum_of_reference),
               channels, packs);
  });
  failures += sum != sum_of_reference;
  Error of_result, of_gradients, of_sum;
  for (int i = 0; i < 8 * packs; ++i) {
    double v = upcast(value[i]), g = upcast(gate[i]), d = upcast(slope[i]);
    double phi = 0.5 * (1 + std::erf(g / std::sqrt(2.0)));
    double density = std::exp(-g * g / 2) / std::sqrt(2 * M_PI);
    of_result.add(upcast(result[i]), v * g * phi);
    of_gradients.add(upcast(of_value[i]), d * g * phi);
    of_gradients.add(upcast(of_gate[i]), d * v * (phi + g * density));
    of_sum.add(upcast(sum[i]), v + g + upcast(narrow(bias[i % channels])));
  }
  of_result.check("gated gelu", ROUNDING);
  of_gradients.check("gradients of the gated gelu", ROUNDING);
  of_sum.check("biased sum", ROUNDING);
}

int main() {
  for (bool silu : {false, true})
    for (bool with_offset : {false, true}) {
      normalisation(/*pixels=*/37, /*channels=*/64, /*groups=*/8, /*splits=*/5, /*lanes=*/3, silu,
                    with_offset);
      normalisation(6, 64, 32, 1, 4, silu, with_offset);
      normalisation(9, 80, 8, 2, 2, silu, with_offset); // packs that span two groups
      normalisation(40, 16, 1, 4, 5, silu, with_offset);
    }
  element_by_element();
  return failures > 0;
}
