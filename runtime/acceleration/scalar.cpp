// The kernel that reads like the formula: what the others are compared with, never chosen for speed.

#include "quantize.h"

namespace ayaedge {
namespace {

void quantize(const Product& p, int64_t column) {
  for (int64_t block = 0; block < p.depth / super_block; ++block)
    quantize_block(p.x + column * p.x_stride + block * super_block, p.quantized[block * p.columns + column]);
}

// The sums of products are integers, exact in 32 bits: 256*63*15*127 and 256*127*32*127 are less than 2^31.
float dot(const BlockQ4K& block, const Column& column) {
  uint8_t scale[8], minimum[8];
  unpack_scales(block.scales, scale, minimum);
  int32_t products = 0, minima = 0;
  for (int j = 0; j < 8; ++j) {
    int32_t sum = 0, product = 0;
    for (int i = 0; i < 32; ++i) {
      const int q = block.q[32 * (j / 2) + i] >> (j % 2 ? 4 : 0) & 15;
      sum += column.q[32 * j + i];
      product += q * column.q[32 * j + i];
    }
    products += scale[j] * product;
    minima += minimum[j] * sum;
  }
  return column.d * (half(block.d) * float(products) - half(block.dmin) * float(minima));
}

float dot(const BlockQ6K& block, const Column& column) {
  int32_t products = 0;
  for (int k = 0; k < super_block; ++k) {
    const int part = k / 128, group = k % 128 / 32, i = k % 32;
    const int low = block.low[64 * part + 32 * (group % 2) + i] >> (group / 2 ? 4 : 0) & 15;
    const int high = block.high[32 * part + i] >> 2 * group & 3;
    products += block.scales[k / 16] * ((low | high << 4) - 32) * column.q[k];
  }
  return column.d * (half(block.d) * float(products));
}

template <typename Block>
void multiply_rows(const Product& p, int64_t first, int64_t end) {
  const int64_t blocks = p.depth / super_block;
  const Block* weights = reinterpret_cast<const Block*>(p.weights);
  for (int64_t column = 0; column < p.columns; ++column)
    for (int64_t row = first; row < end; ++row) {
      float sum = 0;
      for (int64_t block = 0; block < blocks; ++block)
        sum += dot(weights[row * blocks + block], p.quantized[block * p.columns + column]);
      p.out[column * p.out_stride + row] = sum;
    }
}

void multiply(const Product& p, int64_t first, int64_t end, Sums&) {
  p.type == q4_k ? multiply_rows<BlockQ4K>(p, first, end) : multiply_rows<BlockQ6K>(p, first, end);
}

int64_t peak(int64_t) { return 0; }

}  // namespace

extern const Kernel kernel_scalar;
const Kernel kernel_scalar{"scalar", quantize, multiply, peak};

}  // namespace ayaedge
