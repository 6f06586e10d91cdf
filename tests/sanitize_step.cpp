// Trains many shapes with arrays of their exact sizes, to be run under sanitizers.
#include "../imavae/training/step.cpp"

#include <cstdio>

namespace {

uint32_t state = 1;
float number() { return float((state = state * 1664525u + 1013904223u) >> 8) / (1 << 23) - 1; }

std::vector<float> numbers(long count, float scale) {
  std::vector<float> result(count);
  for (float& x : result) x = scale * number();
  return result;
}

bool run(int latent, int observed, int maps, int width, int batch, int activation, int prior, int free) {
  std::vector<int32_t> encoder{observed}, decoder{latent}, order(3 * batch);
  for (int i = 1; i < maps; i++) encoder.push_back(width), decoder.push_back(width);
  encoder.push_back(2 * latent), decoder.push_back(observed);
  const Model model{latent, observed, maps, maps, activation, prior, free, prior % 2, encoder.data(), decoder.data(),
                    0.2f,   -1,       2,    {0.1f, 0.2f}, {0.9f, 0.999f}};
  const long count = parameters(&model), rows = 40;
  auto weights = numbers(count, 0.3f), x = numbers(rows * observed, 1), noise = numbers(3L * batch * latent, 1);
  std::vector<float> first(count), second(count), sizes(3, 1e-3f), epsilons(3, 1e-8f);
  for (int32_t& row : order) row = int32_t((number() + 1) / 2 * (rows - 1));
  return train(&model, weights.data(), first.data(), second.data(), x.data(), order.data(), noise.data(), sizes.data(),
               epsilons.data(), 3, batch, 1) == 3;
}

}  // namespace

int main() {
  const int widths[] = {1, 5, 8, 33}, batches[] = {1, 7, 32, 64, 65};
  bool finite = true;
  for (int latent = 1; latent <= 4; latent++)
    for (int maps = 1; maps <= 3; maps++)
      for (int width : widths)
        for (int batch : batches)
          for (int activation = 0; activation < 4; activation++) {
            const int prior = (latent + maps + activation + batch) % 4, most = prior == UNIFORM ? 0 : prior == BETA ? 2 : 1;
            finite &= run(latent, latent + width % 3, maps, width, batch, activation, prior, width % 2 ? most : 0);
          }
  if (!finite) std::puts("a gradient was not finite");
  return finite ? 0 : 1;
}
