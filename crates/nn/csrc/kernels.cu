// Kernels for GPUs, compiled at run time (kernels.cpp) for one dtype at a time.
//
// PyTorch's group normalisation on a GPU needs contiguous NCHW. Convolutions are fastest channels
// last, so between them it costs two changes of layout and four passes. These kernels read an image
// [B, H, W, C] twice and write it once, and include the neighbours of the normalisation in the
// network: an offset for each channel before it, and x · sigmoid(x) after it. Sums are f32 and in a
// fixed order, so results repeat to the bit.
//
// Threads of a block: `columns` = C / 8 along the channels, and `lanes` rows side by side. A thread
// always has the same 8 channels. An image of `pixels` rows is split into `splits` parts, none of
// them empty.

#if FORMAT == 0
typedef float Element;
static __device__ float upcast(Element x) { return x; }
static __device__ Element narrow(float x) { return x; }
#elif FORMAT == 1
typedef unsigned short Element; // bf16
static __device__ float upcast(Element x) { return __uint_as_float((unsigned)x << 16); }
static __device__ Element narrow(float x) {
  unsigned bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u)
    return 0x7fc0;
  return (Element)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
#else
typedef unsigned short Element; // f16
#ifdef __CUDACC__
static __device__ float upcast(Element x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x));
  return wide;
}
static __device__ Element narrow(float x) {
  Element half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
  return half;
}
#endif // tests/kernels/on_cpu.cpp has its own
#endif

struct alignas(8 * sizeof(Element)) Pack {
  Element at[8];
};

// A parameter: an Element, or f32 that is rounded to one first.
static __device__ float parameter(const void *values, int is_f32, int index) {
  return is_f32 ? upcast(narrow(((const float *)values)[index]))
                : upcast(((const Element *)values)[index]);
}

#if FORMAT == 0
static __device__ float exponential(float x) { return expf(x); }
static __device__ float inverse(float x) { return 1.0f / x; }
#else // more digits than the dtype has
static __device__ float exponential(float x) { return __expf(x); }
static __device__ float inverse(float x) { return __fdividef(1.0f, x); }
#endif

static __device__ float sigmoid(float x) { return inverse(1.0f + exponential(-x)); }

#define MOST_THREADS 512

struct Sizes {
  int pixels, channels, groups, splits, columns, lanes, parameters_are_f32, silu;
  float epsilon;
};

// The offset of channel `c` of image `b` before the normalisation.
static __device__ float offset(const Element *shift, const void *bias, const Sizes &sizes, int b,
                               int c) {
  float sum = shift ? upcast(shift[b * sizes.channels + c]) : 0.0f;
  return bias ? sum + parameter(bias, sizes.parameters_are_f32, c) : sum;
}

struct Part {
  int first, end;
};

static __device__ Part part_of(const Sizes &sizes, int split) {
  int rows = (sizes.pixels + sizes.splits - 1) / sizes.splits;
  int first = min(split * rows, sizes.pixels);
  return {first, min(first + rows, sizes.pixels)};
}

// For each group, the mean and the sum of squared distances from it, in split `blockIdx.x` of image
// `blockIdx.y`: moments [B, splits, groups, 2]. Shared: 2 · C floats.
extern "C" __global__ void __launch_bounds__(MOST_THREADS) moments(const Element *x, const Element *shift, const void *bias,
                                   float *moments, Sizes sizes) {
  extern __shared__ float shared[];
  float *mean_C = shared, *distance_C = shared + sizes.channels;
  int column = threadIdx.x % sizes.columns, lane = threadIdx.x / sizes.columns;
  int b = blockIdx.y, c = 8 * column;
  Part part = part_of(sizes, blockIdx.x);
  const Element *image = x + (size_t)b * sizes.pixels * sizes.channels;
  // Sums of distances from the first value keep all digits even if the mean is large.
  float pivot[8], sum[8], square[8];
  int count = 0;
  for (int pixel = part.first + lane; pixel < part.end; pixel += sizes.lanes, ++count) {
    Pack pack = *(const Pack *)(image + (size_t)pixel * sizes.channels + c);
    for (int i = 0; i < 8; ++i) {
      float value = upcast(pack.at[i]);
      if (count == 0) {
        pivot[i] = value;
        sum[i] = square[i] = 0.0f;
      }
      float distance = value - pivot[i];
      sum[i] += distance;
      square[i] += distance * distance;
    }
  }
  // One lane after another merges its moments into those of the channel.
  int joined = 0;
  for (int turn = 0; turn < sizes.lanes; ++turn) {
    int rows = part.end - part.first - turn;
    rows = rows > 0 ? (rows + sizes.lanes - 1) / sizes.lanes : 0;
    if (lane == turn && rows > 0) {
      for (int i = 0; i < 8; ++i) {
        float mean = sum[i] / rows, distance = square[i] - mean * sum[i];
        mean += pivot[i];
        if (joined > 0) {
          float apart = mean - mean_C[c + i], total = joined + rows;
          distance += distance_C[c + i] + apart * apart * (joined * (rows / total));
          mean = mean_C[c + i] + apart * (rows / total);
        }
        mean_C[c + i] = mean;
        distance_C[c + i] = distance;
      }
    }
    joined += rows;
    __syncthreads();
  }
  int width = sizes.channels / sizes.groups;
  for (int group = threadIdx.x; group < sizes.groups; group += blockDim.x) {
    float mean = 0.0f, distance = 0.0f;
    for (int i = group * width; i < (group + 1) * width; ++i)
      mean += mean_C[i] + offset(shift, bias, sizes, b, i);
    mean /= width;
    for (int i = group * width; i < (group + 1) * width; ++i) {
      float apart = mean_C[i] + offset(shift, bias, sizes, b, i) - mean;
      distance += distance_C[i] + joined * apart * apart;
    }
    float *result = moments + 2 * ((b * sizes.splits + blockIdx.x) * sizes.groups + group);
    result[0] = mean;
    result[1] = distance;
  }
}

// Mean and 1 / std of the groups of image `b`, from the moments of its splits, into statistics_G2.
// Shared: scratch of 4 · blockDim.x bytes.
static __device__ void join_moments(const float *moments, const Sizes &sizes, int b,
                                    float *statistics_G2, float *scratch) {
  int helpers = blockDim.x / sizes.groups;
  int group = threadIdx.x % sizes.groups, helper = threadIdx.x / sizes.groups;
  int width = sizes.channels / sizes.groups;
  float total = (float)sizes.pixels * width, mean = 0.0f;
  for (int pass = 0; pass < 2; ++pass) {
    float sum = 0.0f;
    if (helper < helpers)
      for (int split = helper; split < sizes.splits; split += helpers) {
        const float *pair = moments + 2 * ((b * sizes.splits + split) * sizes.groups + group);
        Part part = part_of(sizes, split);
        float count = (float)(part.end - part.first) * width, apart = pair[0] - mean;
        sum += pass == 0 ? count * pair[0] : pair[1] + count * apart * apart;
      }
    scratch[threadIdx.x] = sum;
    __syncthreads();
    sum = 0.0f;
    for (int i = 0; i < helpers; ++i)
      sum += scratch[i * sizes.groups + group];
    if (pass == 0)
      mean = sum / total;
    else if (helper == 0) {
      statistics_G2[2 * group] = mean;
      statistics_G2[2 * group + 1] = 1.0f / sqrtf(sum / total + sizes.epsilon);
    }
    __syncthreads();
  }
}

// y = silu((x + offset - mean) / std · weight + beta), or without silu, for split blockIdx.x of
// gridDim.x of image blockIdx.y; statistics [B, groups, 2] receive mean and 1 / std. Shared: 2 ·
// groups + blockDim.x floats.
extern "C" __global__ void __launch_bounds__(MOST_THREADS) normalize(const Element *x, const Element *shift, const void *bias,
                                     const void *weight, const void *beta, const float *moments,
                                     float *statistics, Element *y, Sizes sizes) {
  extern __shared__ float shared[];
  int b = blockIdx.y;
  join_moments(moments, sizes, b, shared, shared + 2 * sizes.groups);
  if (blockIdx.x == 0)
    for (int i = threadIdx.x; i < 2 * sizes.groups; i += blockDim.x)
      statistics[2 * b * sizes.groups + i] = shared[i];
  int column = threadIdx.x % sizes.columns, lane = threadIdx.x / sizes.columns;
  int c = 8 * column, width = sizes.channels / sizes.groups;
  float factor[8], addend[8];
  for (int i = 0; i < 8; ++i) {
    int group = (c + i) / width;
    factor[i] = shared[2 * group + 1] * parameter(weight, sizes.parameters_are_f32, c + i);
    addend[i] = (offset(shift, bias, sizes, b, c + i) - shared[2 * group]) * factor[i] +
                parameter(beta, sizes.parameters_are_f32, c + i);
  }
  size_t start = (size_t)b * sizes.pixels * sizes.channels + c;
  for (int pixel = blockIdx.x * sizes.lanes + lane; pixel < sizes.pixels;
       pixel += gridDim.x * sizes.lanes) {
    size_t place = start + (size_t)pixel * sizes.channels;
    Pack pack = *(const Pack *)(x + place);
    for (int i = 0; i < 8; ++i) {
      float value = upcast(pack.at[i]) * factor[i] + addend[i];
      pack.at[i] = narrow(sizes.silu ? value * sigmoid(value) : value);
    }
    *(Pack *)(y + place) = pack;
  }
}

// The gradient before the activation, and the normalised value.
struct Slope {
  float gradient, normal;
};

static __device__ Slope slope(float x, float gradient, float factor, float addend, float weight,
                              float beta, int silu) {
  float normal = x * factor + addend;
  if (silu) {
    float value = normal * weight + beta, s = sigmoid(value);
    gradient *= s * (1.0f + value * (1.0f - s));
  }
  return {gradient, normal};
}

// For each channel, the sums over the pixels of gradient, gradient · normal and normal: sums [B,
// splits, 3, C]. Shared: 3 · C floats.
extern "C" __global__ void __launch_bounds__(MOST_THREADS) gradient_sums(const Element *x, const Element *shift, const void *bias,
                                         const void *weight, const void *beta,
                                         const float *statistics, const Element *dy, float *sums,
                                         Sizes sizes) {
  extern __shared__ float shared[];
  int column = threadIdx.x % sizes.columns, lane = threadIdx.x / sizes.columns;
  int b = blockIdx.y, c = 8 * column, width = sizes.channels / sizes.groups;
  Part part = part_of(sizes, blockIdx.x);
  float factor[8], addend[8], scale[8], start[8], total[3][8];
  for (int i = 0; i < 8; ++i) {
    const float *pair = statistics + 2 * (b * sizes.groups + (c + i) / width);
    factor[i] = pair[1];
    addend[i] = (offset(shift, bias, sizes, b, c + i) - pair[0]) * pair[1];
    scale[i] = parameter(weight, sizes.parameters_are_f32, c + i);
    start[i] = parameter(beta, sizes.parameters_are_f32, c + i);
    total[0][i] = total[1][i] = total[2][i] = 0.0f;
  }
  size_t image = (size_t)b * sizes.pixels * sizes.channels + c;
  for (int pixel = part.first + lane; pixel < part.end; pixel += sizes.lanes) {
    size_t place = image + (size_t)pixel * sizes.channels;
    Pack values = *(const Pack *)(x + place), gradients = *(const Pack *)(dy + place);
    for (int i = 0; i < 8; ++i) {
      Slope at = slope(upcast(values.at[i]), upcast(gradients.at[i]), factor[i], addend[i], scale[i],
                       start[i], sizes.silu);
      total[0][i] += at.gradient;
      total[1][i] += at.gradient * at.normal;
      total[2][i] += at.normal;
    }
  }
  for (int turn = 0; turn < sizes.lanes; ++turn) {
    if (lane == turn)
      for (int kind = 0; kind < 3; ++kind)
        for (int i = 0; i < 8; ++i) {
          float *sum = shared + kind * sizes.channels + c + i;
          *sum = turn == 0 ? total[kind][i] : *sum + total[kind][i];
        }
    __syncthreads();
  }
  float *result = sums + (size_t)(b * sizes.splits + blockIdx.x) * 3 * sizes.channels;
  for (int i = threadIdx.x; i < 3 * sizes.channels; i += blockDim.x)
    result[i] = shared[i];
}

// Sums over the splits: sums [B, splits, 3, C] to totals [B, 3, C], one number per thread.
extern "C" __global__ void gradient_totals(const float *sums, float *totals, Sizes sizes) {
  int all = 3 * sizes.channels, place = blockIdx.x * blockDim.x + threadIdx.x, b = blockIdx.y;
  if (place >= all)
    return;
  float total = 0.0f;
  for (int split = 0; split < sizes.splits; ++split)
    total += sums[(size_t)(b * sizes.splits + split) * all + place];
  totals[(size_t)b * all + place] = total;
}

// The gradient of x; the first block of each image also computes that of its offset,
// offset_gradient [B, C] (which may be null). Shared: 2 · groups floats.
extern "C" __global__ void __launch_bounds__(MOST_THREADS) gradient(const Element *x, const Element *shift, const void *bias,
                                    const void *weight, const void *beta, const float *statistics,
                                    const Element *dy, const float *totals, Element *dx,
                                    float *offset_gradient, Sizes sizes) {
  extern __shared__ float shared[];
  int column = threadIdx.x % sizes.columns, lane = threadIdx.x / sizes.columns;
  int b = blockIdx.y, c = 8 * column, width = sizes.channels / sizes.groups;
  const float *total = totals + (size_t)b * 3 * sizes.channels;
  float count = (float)sizes.pixels * width;
  for (int i = threadIdx.x; i < 2 * sizes.groups; i += blockDim.x) {
    int group = i / 2, kind = i % 2;
    float sum = 0.0f;
    for (int channel = group * width; channel < (group + 1) * width; ++channel)
      sum += parameter(weight, sizes.parameters_are_f32, channel) *
             total[kind * sizes.channels + channel];
    shared[i] = sum / count;
  }
  __syncthreads();
  float factor[8], addend[8], scale[8], start[8], mean[8], along[8];
  for (int i = 0; i < 8; ++i) {
    int group = (c + i) / width;
    const float *pair = statistics + 2 * (b * sizes.groups + group);
    factor[i] = pair[1];
    addend[i] = (offset(shift, bias, sizes, b, c + i) - pair[0]) * pair[1];
    scale[i] = parameter(weight, sizes.parameters_are_f32, c + i);
    start[i] = parameter(beta, sizes.parameters_are_f32, c + i);
    mean[i] = shared[2 * group];
    along[i] = shared[2 * group + 1];
    if (offset_gradient && blockIdx.x == 0 && lane == 0)
      offset_gradient[b * sizes.channels + c + i] =
          factor[i] * (scale[i] * total[c + i] - mean[i] * sizes.pixels -
                       along[i] * total[2 * sizes.channels + c + i]);
  }
  size_t image = (size_t)b * sizes.pixels * sizes.channels + c;
  for (int pixel = blockIdx.x * sizes.lanes + lane; pixel < sizes.pixels;
       pixel += gridDim.x * sizes.lanes) {
    size_t place = image + (size_t)pixel * sizes.channels;
    Pack values = *(const Pack *)(x + place), gradients = *(const Pack *)(dy + place);
    for (int i = 0; i < 8; ++i) {
      Slope at = slope(upcast(values.at[i]), upcast(gradients.at[i]), factor[i], addend[i], scale[i],
                       start[i], sizes.silu);
      values.at[i] = narrow(factor[i] * (scale[i] * at.gradient - mean[i] - at.normal * along[i]));
    }
    *(Pack *)(dx + place) = values;
  }
}

// Phi(x) of the normal distribution.
static __device__ float cumulative(float x) { return 0.5f * (1.0f + erff(x * 0.70710678f)); }

// result = value · gelu(gate), element by element; `packs` of 8.
extern "C" __global__ void gated_gelu(const Pack *value, const Pack *gate, Pack *result,
                                      long long packs) {
  long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= packs)
    return;
  Pack v = value[i], g = gate[i];
  for (int j = 0; j < 8; ++j) {
    float x = upcast(g.at[j]);
    v.at[j] = narrow(upcast(v.at[j]) * (x * cumulative(x)));
  }
  result[i] = v;
}

extern "C" __global__ void gated_gelu_gradient(const Pack *value, const Pack *gate,
                                               const Pack *gradient, Pack *value_gradient,
                                               Pack *gate_gradient, long long packs) {
  long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= packs)
    return;
  Pack v = value[i], g = gate[i], d = gradient[i];
  for (int j = 0; j < 8; ++j) {
    float x = upcast(g.at[j]), dy = upcast(d.at[j]), phi = cumulative(x);
    float density = 0.39894228f * exponential(-0.5f * x * x);
    g.at[j] = narrow(dy * upcast(v.at[j]) * (phi + x * density));
    v.at[j] = narrow(dy * (x * phi));
  }
  value_gradient[i] = v;
  gate_gradient[i] = g;
}

// result = stream + update + bias of the channel, [rows, C]; `packs` of 8.
extern "C" __global__ void add_biased(const Pack *stream, const Pack *update, const void *bias,
                                      int bias_is_f32, Pack *result, int channels,
                                      long long packs) {
  long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= packs)
    return;
  Pack s = stream[i], u = update[i];
  int c = (int)(8 * i % channels);
  for (int j = 0; j < 8; ++j)
    s.at[j] = narrow(upcast(s.at[j]) + (upcast(u.at[j]) + parameter(bias, bias_is_f32, c + j)));
  result[i] = s;
}
