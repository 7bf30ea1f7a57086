// Runs an artifact with ONNX Runtime and compares every hook with PyTorch's: check ARTIFACT
#include <onnxruntime_cxx_api.h>

#include <cstdio>
#include <fstream>

#include "golden.hpp"

namespace {

/// Runs a graph of an artifact on tensors of the golden batch.
///
/// @param spec The graph in sae.json, with the names of its inputs and outputs.
Outputs run(const Ort::Env& env, const std::string& folder, const nlohmann::json& spec, const Tensors& golden) {
  const std::string file = spec.at("file");
  Ort::Session session(env, (folder + "/" + file).c_str(), Ort::SessionOptions{});
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);

  std::vector<std::string> inputs, outputs;
  std::vector<const char*> input_names, output_names;
  std::vector<Ort::Value> values;
  for (const auto& input : spec.at("inputs")) inputs.push_back(input.at("name"));
  for (const auto& output : spec.at("outputs")) outputs.push_back(output.at("name"));
  for (const auto& name : outputs) output_names.push_back(name.c_str());
  for (const auto& name : inputs) {
    const auto& tensor = golden.at(name == "input" ? "hook_sae_input" : name);
    const auto type = tensor.dtype == "I64" ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    input_names.push_back(name.c_str());
    values.push_back(Ort::Value::CreateTensor(memory, const_cast<char*>(tensor.bytes.data()), tensor.bytes.size(),
                                              tensor.shape.data(), tensor.shape.size(), type));
  }
  const auto results = session.Run({}, input_names.data(), values.data(), values.size(), output_names.data(),
                                   output_names.size());
  Outputs found;
  for (std::size_t i = 0; i < results.size(); i++) {
    const float* data = results[i].GetTensorData<float>();
    found[outputs[i]].assign(data, data + results[i].GetTensorTypeAndShapeInfo().GetElementCount());
  }
  return found;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 2) throw std::runtime_error("Name the folder of an artifact: check models/tiny");
  const std::string folder = argv[1];
  std::ifstream text(folder + "/sae.json");
  if (!text) throw std::runtime_error(folder + " does not have a sae.json; name the folder of an artifact.");
  const auto manifest = nlohmann::json::parse(text);
  const auto golden = read_safetensors(folder + "/" + manifest.at("golden").at("file").get<std::string>());
  std::printf("ONNX Runtime %s, %s\n", Ort::GetVersionString().c_str(), folder.c_str());

  const Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "saeexport");
  int failed = 0;
  const auto report = [&failed](const std::string& graph, const Verdict& verdict) {
    std::printf("  %-13s %-26s token error %.2e, element error %.2e  %s\n", graph.c_str(), verdict.name.c_str(),
                verdict.token, verdict.element, verdict.ok ? "ok" : "FAILED");
    failed += !verdict.ok;
  };
  const auto& graphs = manifest.at("graphs");
  for (const std::string graph : {"model", "model.sparse"})
    for (const auto& verdict : compare_hooks(manifest, golden, run(env, folder, graphs.at(graph), golden)))
      report(graph, verdict);
  for (const std::string graph : {"steer", "steer.sparse"}) {
    const auto outputs = run(env, folder, graphs.at(graph), golden);
    for (const std::string hook : {"hook_sae_recons", "hook_sae_output"}) {
      const auto& budget = manifest.at("parity").at("steered").at(hook).at("budget");
      report(graph, compare(golden, "steered." + hook, outputs.at(hook), budget));
    }
  }
  if (failed) std::printf("%d comparisons failed.\n", failed);
  return failed ? 1 : 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
