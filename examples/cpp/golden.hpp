// Compares outputs with the golden batch of an artifact, by the rule of docs/other-languages.md.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "safetensors.hpp"

using Outputs = std::map<std::string, std::vector<float>>;

/// The result for one tensor. Its errors are 0 if it is compared exactly.
struct Verdict {
  std::string name;
  bool ok;
  double token = 0, element = 0;
};

/// Returns the larger number; NaN counts as larger than any, so that it is not lost.
inline double larger(double a, double b) { return a <= b || std::isnan(b) ? b : a; }

/// Returns a tensor's truth: what PyTorch computed, plus what it lacks.
inline std::vector<double> truth_of(const Tensors& golden, const std::string& name) {
  const auto values = golden.at(name).values<float>(), residual = golden.at("residual." + name).values<float>();
  std::vector<double> truth(values.begin(), values.end());
  for (std::size_t i = 0; i < truth.size(); i++) truth[i] += residual[i];
  return truth;
}

/// Compares a tensor with that of the same name in the golden batch.
///
/// @param found What was computed.
/// @param budget The largest errors, `{"token": ..., "element": ...}`, from sae.json.
inline Verdict compare(const Tensors& golden, const std::string& name, const std::vector<float>& found,
                       const nlohmann::json& budget) {
  constexpr double outlier_ratio = 32;
  const auto truth = truth_of(golden, name), scales = golden.at("scale." + name).values<double>();
  const bool of_features = name == "hook_sae_acts_pre" || name == "hook_sae_acts_post";
  const auto pre = of_features ? truth_of(golden, "hook_sae_acts_pre") : std::vector<double>(truth.size());
  const double most_token = budget.at("token"), most_element = budget.at("element");
  const std::size_t width = truth.size() / scales.size();

  Verdict verdict{name, found.size() == truth.size()};
  if (!verdict.ok) return verdict;
  for (std::size_t t = 0; t < scales.size(); t++) {
    double squares = 0;
    for (std::size_t i = t * width; i < (t + 1) * width; i++) {
      const double difference = std::abs(found[i] - truth[i]);
      const double error = difference == 0 ? 0 : difference / std::max(scales[t], std::abs(pre[i]) / outlier_ratio);
      squares += error * error;
      verdict.element = larger(verdict.element, error);
    }
    verdict.token = larger(verdict.token, std::sqrt(squares / static_cast<double>(width)));
  }
  verdict.ok = verdict.token <= most_token && verdict.element <= most_element;  // false for NaN
  return verdict;
}

/// Compares the hooks that a graph computed without an intervention. The input, the sum and the features that are on must
/// be exact.
///
/// @param manifest The content of sae.json, of an artifact in float32.
inline std::vector<Verdict> compare_hooks(const nlohmann::json& manifest, const Tensors& golden, const Outputs& outputs) {
  if (manifest.at("weights_dtype") != "float32") throw std::runtime_error("The weights are not float32.");
  const auto& acts = outputs.at("hook_sae_acts_post");
  const auto& output = outputs.at("hook_sae_output");
  const auto& input = outputs.at("hook_sae_input");
  const auto& given = golden.at("hook_sae_input").bytes;
  const auto expected = golden.at("hook_sae_acts_post").values<float>();
  const auto same_state = [](float a, float b) { return (a != 0) == (b != 0); };

  std::vector<Verdict> verdicts{{"hook_sae_input", input.size() * sizeof(float) == given.size() &&
                                                       std::memcmp(input.data(), given.data(), given.size()) == 0}};
  for (const auto& [name, record] : manifest.at("parity").at("hooks").items())
    verdicts.push_back(compare(golden, name, outputs.at(name), record.at("budget")));
  verdicts.push_back({"features on", std::equal(acts.begin(), acts.end(), expected.begin(), expected.end(), same_state)});

  auto sum = outputs.at("hook_sae_recons");
  if (manifest.at("sae").at("use_error_term")) {
    const auto& error = outputs.at("hook_sae_error");
    for (std::size_t i = 0; i < std::min(sum.size(), error.size()); i++) sum[i] += error[i];
  }
  verdicts.push_back({"sum", sum == output});
  return verdicts;
}
