// Prints what the CPU kernels give for a few made-up rows, without torch: "name value" on each line. Two builds are
// compared by it, one of them emulated.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace {

using namespace cw_cpu;

// Multiples of 1/64 in [−1, 1), which every element type has.
struct Numbers {
  uint32_t state = 1;
  double next() {
    state = state * 1664525u + 1013904223u;
    return double(int32_t(state >> 25) - 64) / 64;
  }
  template <typename In>
  std::vector<In> vector(int64_t count) {
    std::vector<In> x(static_cast<size_t>(count));
    for (In& value : x) set(next(), value);
    return x;
  }
  static void set(double x, double& to) { to = x; }
  static void set(double x, float& to) { to = float(x); }
  static void set(double x, Half& to) {
    int exponent;
    const double mantissa = std::frexp(std::abs(x), &exponent);  // in [½, 1), or 0
    to.bits = uint16_t((x < 0) << 15 | (x == 0 ? 0 : (exponent + 14) << 10 | (int(mantissa * 2048) & 1023)));
  }
  static void set(double x, BFloat16& to) {
    const float value = float(x);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    to.bits = uint16_t(bits >> 16);
  }
};

double number(double x) { return x; }
double number(Half x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return x.bits >> 15 ? -magnitude : magnitude;
}
double number(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return double(value);
}

template <typename T>
void print(const std::string& name, const std::vector<T>& values) {
  for (const T& value : values) std::printf("%s %.17g\n", name.c_str(), number(value));
}

constexpr int64_t kRows = 5, kNegatives = 37, kExtra = 2, kDim = 19, kItems = 150;

cw_ext::LossArguments arguments() {
  cw_ext::LossArguments a{};
  a.weighting = 1;
  a.normalize_weights = true;
  a.confidence_temperature = {true, 0.5};
  a.gradient_scale = 1;
  return a;
}

template <typename T>
RowInputs<T> row_values() {
  return {{nullptr, 0, 0.1}, {nullptr, 0, 0.0}, {nullptr, 0, 0.3}};
}

template <typename In>
void of_scores(const std::string& type) {
  using T = typename Compute<In>::type;
  Numbers numbers;
  const auto pos = numbers.vector<In>(kRows), neg = numbers.vector<In>(kRows * kNegatives),
             extra = numbers.vector<In>(kRows * kExtra);
  std::vector<T> loss(kRows), d_pos(kRows), d_neg(kRows * kNegatives), d_extra(kRows * kExtra);
  std::vector<T> room(size_t(scores_scratch(kNegatives, kExtra)));
  bool live[kRows];
  ScoresTask<In> task{};
  task.arguments = arguments();
  task.pos = pos.data();
  task.pos_stride = 1;
  task.neg = neg.data();
  task.neg_stride = task.n = kNegatives;
  task.extra = extra.data();
  task.extra_stride = task.m = kExtra;
  task.values = row_values<T>();
  task.out.loss = loss.data();
  task.out.live = live;
  task.d_pos = d_pos.data();
  task.d_neg = d_neg.data();
  task.d_extra = d_extra.data();
  isa_default::scores<In>(task, 0, kRows, room.data());
  print(type + ".scores.loss", loss);
  print(type + ".scores.d_pos", d_pos);
  print(type + ".scores.d_neg", d_neg);
  print(type + ".scores.d_extra", d_extra);
}

template <typename In>
void of_embeddings(const std::string& type) {
  using T = typename Compute<In>::type;
  Numbers numbers;
  const int64_t width = 1 + kExtra + kNegatives, padded = round_up_dim(kDim), past_the_end = 64;
  const auto queries = numbers.vector<In>(kRows * kDim), items = numbers.vector<In>(kItems * kDim + past_the_end);
  const std::vector<In> zeros(size_t(padded + past_the_end));
  std::vector<int64_t> pos_ids, extra_ids;
  std::vector<int32_t> neg_ids;
  const auto id = [&] { return int64_t((numbers.next() + 1) / 2 * double(kItems)); };
  for (int64_t i = 0; i < kRows; ++i) pos_ids.push_back(id());
  for (int64_t i = 0; i < kRows * kExtra; ++i) extra_ids.push_back(id());
  for (int64_t i = 0; i < kRows * kNegatives; ++i) neg_ids.push_back(int32_t(id()));

  std::vector<T> loss(kRows), unit_queries(kRows * kDim), d_queries(kRows * kDim), coefficients(size_t(kRows * width));
  std::vector<T> room(size_t(embeddings_scratch(kNegatives, kExtra, kDim)));
  std::vector<const In*> item_rows(size_t(embeddings_rows(kNegatives, kExtra)));
  bool live[kRows];
  EmbeddingsTask<In, int32_t> task{};
  task.arguments = arguments();
  task.queries = queries.data();
  task.items = {items.data(), kDim, kItems, nullptr, zeros.data()};
  task.n = kNegatives;
  task.m = kExtra;
  task.values = row_values<T>();
  task.scale = 1;
  task.normalized = true;
  task.with_gradients = true;
  task.out.loss = loss.data();
  task.out.live = live;
  task.unit_queries = unit_queries.data();
  task.d_queries = d_queries.data();
  task.ids = {pos_ids.data(), extra_ids.data(), kExtra, neg_ids.data(), kNegatives};
  isa_default::embeddings<In, int32_t>(task, 0, kRows, coefficients.data(), {item_rows.data(), room.data()});
  print(type + ".embeddings.loss", loss);
  print(type + ".embeddings.d_queries", d_queries);

  const PairGrid grid = pair_grid(kRows, width, kItems);
  std::vector<int32_t> ends(size_t(grid.blocks * grid.buckets));
  std::vector<PairKey> keys(size_t(kRows * width));
  std::vector<SortedPair<T>> sort_room(size_t(grid.pairs_per_block()));
  std::vector<T> sorted(size_t(kRows * width)), sources(size_t(kRows * padded));
  for (int64_t block = 0; block < grid.blocks; ++block) {
    const int64_t base = block * grid.pairs_per_block();
    int32_t* const own_ends = ends.data() + block * grid.buckets;
    count_block(task.ids, grid, block, kItems, own_ends);
    sort_block(task.ids, grid, block, coefficients.data() + base, own_ends, sort_room.data(), keys.data() + base,
               sorted.data() + base);
  }
  for (int64_t b = 0; b < kRows; ++b) {
    for (int64_t i = 0; i < kDim; ++i) sources[size_t(b * padded + i)] = unit_queries[size_t(b * kDim + i)];
  }
  std::vector<In> gradient(kItems * kDim);
  std::vector<T> gradient_room(size_t(item_gradient_scratch(kDim)));
  ItemGradientTask<In> sums{};
  sums.items = items.data();
  sums.num_items = kItems;
  sums.dim = kDim;
  sums.padded_dim = padded;
  sums.normalized = true;
  sums.sources = sources.data();
  sums.grid = grid;
  sums.keys = keys.data();
  sums.coefficients = sorted.data();
  sums.ends = ends.data();
  sums.gradient = gradient.data();
  isa_default::item_gradient<In>(sums, 0, grid.buckets, gradient_room.data());
  print(type + ".item_gradient", gradient);
}

template <typename T>
void product(const std::string& type) {
  constexpr int64_t kPanel = ProductTask<T>::kPanel, kRowsHere = kRowStep + 1;
  Numbers numbers;
  const auto a = numbers.vector<T>(kRowsHere * kDim), b = numbers.vector<T>(2 * kDim * kPanel);
  std::vector<T> c(size_t(kRowsHere * 2 * kPanel));
  isa_default::product<T>({a.data(), kDim, 1, kDim, b.data(), 2, c.data(), 2 * kPanel, false}, 0, kRowsHere);
  print(type + ".product", c);
}

// Uniform negatives, then popular ones, of which item 0 has half and the others the rest in equal parts.
void draw(bool popular) {
  const int64_t seed = 1234567890123, num_queries = 2, n = 400;
  const std::vector<int64_t> query_ids{0, 1, 0}, starts{0, 3, kItems - 1};
  std::vector<int32_t> known{2, 70, 149}, aliases(kItems);
  for (int32_t item = 0; item < kItems - 4; ++item) known.push_back(item);  // query 1 knows almost every item
  std::vector<uint32_t> thresholds(kItems, 1u << 31);
  std::vector<int64_t> cumulative(kItems);
  int64_t total = 0;
  for (int64_t i = 0; i < kItems; ++i) {
    total += i == 0 ? (int64_t(1) << 32) + (kItems - 1) * (int64_t(1) << 31) : int64_t(1) << 31;
    cumulative[size_t(i)] = total;
  }
  cw_ext::NegativeSource source{};
  source.seed = &seed;
  source.row_offset = (int64_t(1) << 33) + 5;
  source.query_ids = query_ids.data();
  source.starts = starts.data();
  source.known = known.data();
  source.num_queries = num_queries;
  source.num_items = kItems;
  if (popular) {
    source.thresholds = thresholds.data();
    source.aliases = aliases.data();
    source.cumulative = cumulative.data();
  }
  std::vector<int32_t> ids(query_ids.size() * n);
  std::vector<uint32_t> room(kFilterWords);
  isa_default::draw_rows(source, n, 0, int64_t(query_ids.size()), ids.data(), room.data());
  print(popular ? "drawn.popular" : "drawn.uniform", ids);
}

template <typename In>
void losses(const std::string& type) {
  of_scores<In>(type);
  of_embeddings<In>(type);
}

}  // namespace

int main() {
  losses<double>("double");
  losses<float>("float");
  losses<Half>("half");
  losses<BFloat16>("bfloat16");
  product<double>("double");
  product<float>("float");
  draw(false);
  draw(true);
}
