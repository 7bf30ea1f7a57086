// Shows that the comparison accepts what PyTorch computed, and nothing that is wrong: golden_test models/tiny
#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>

#include "golden.hpp"

int main(int, char** argv) {
  const std::string folder = argv[1];
  std::ifstream text(folder + "/sae.json");
  const auto manifest = nlohmann::json::parse(text);
  const auto golden = read_safetensors(folder + "/golden.safetensors");
  Outputs intact;
  for (const std::string hook : {"input", "acts_pre", "acts_post", "recons", "error", "output"})
    intact["hook_sae_" + hook] = golden.at("hook_sae_" + hook).values<float>();

  int wrong = 0;
  /// Changes the outputs, and checks whether the comparison of `name` fails; with an empty name, that nothing does.
  const auto expect = [&](const std::string& name, const std::function<void(Outputs&)>& change) {
    auto outputs = intact;
    change(outputs);
    bool found = name.empty();
    for (const auto& verdict : compare_hooks(manifest, golden, outputs)) {
      if (name.empty() && !verdict.ok) found = false;
      if (verdict.name == name && !verdict.ok) found = true;
    }
    if (!found) std::printf("%s: the comparison did not give the right verdict.\n", name.c_str());
    wrong += !found;
  };

  expect("", [](Outputs&) {});
  for (const std::string hook : {"acts_pre", "acts_post", "recons", "error", "output"}) {
    const std::string name = "hook_sae_" + hook;
    expect(name, [&](Outputs& outputs) { outputs[name][7] += 1e-4f; });
    expect(name, [&](Outputs& outputs) { outputs[name][0] = std::nanf(""); });
    expect(name, [&](Outputs& outputs) { outputs[name].pop_back(); });
    expect(name, [&](Outputs& outputs) { for (auto& value : outputs[name]) value *= 1.00001f; });
  }
  expect("hook_sae_input", [](Outputs& outputs) { outputs["hook_sae_input"][0] = std::nextafter(outputs["hook_sae_input"][0], 9.f); });
  expect("features on", [](Outputs& outputs) {
    for (auto& value : outputs["hook_sae_acts_post"]) if (value == 0) { value = 1e-30f; break; }
  });
  expect("sum", [](Outputs& outputs) { outputs["hook_sae_output"][3] = std::nextafter(outputs["hook_sae_output"][3], 9.f); });
  return wrong ? 1 : 0;
}
