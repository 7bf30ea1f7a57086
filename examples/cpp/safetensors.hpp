// Reads the tensors of a safetensors file into memory.
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

/// A tensor of any dtype that an artifact in float32 has: F32, F64 or I64.
struct Tensor {
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::vector<char> bytes;

  /// Returns the values. Throws `std::runtime_error` if `T` has another size than the dtype.
  template <typename T>
  std::vector<T> values() const {
    if (sizeof(T) != (dtype == "F32" ? 4 : 8)) throw std::runtime_error("A tensor is " + dtype + ".");
    std::vector<T> result(bytes.size() / sizeof(T));
    std::memcpy(result.data(), bytes.data(), bytes.size());
    return result;
  }
};

using Tensors = std::map<std::string, Tensor>;

/// Returns every tensor of a file. Throws if it cannot be read, or has a tensor of another dtype.
///
/// Source: the format is 8 bytes with the length of the header, the header in JSON, and the data, all little-endian, as
/// this machine has to be.
inline Tensors read_safetensors(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  file.exceptions(std::ios::failbit | std::ios::badbit);
  std::uint64_t length = 0;
  file.read(reinterpret_cast<char*>(&length), sizeof length);
  std::string text(length, '\0');
  file.read(text.data(), static_cast<std::streamsize>(length));
  const auto header = nlohmann::json::parse(text);

  Tensors tensors;
  for (const auto& [name, spec] : header.items()) {
    if (name == "__metadata__") continue;
    Tensor tensor{spec.at("dtype"), spec.at("shape"), {}};
    if (tensor.dtype != "F32" && tensor.dtype != "F64" && tensor.dtype != "I64")
      throw std::runtime_error(name + " is " + tensor.dtype + "; this example reads F32, F64 and I64.");
    const std::uint64_t start = spec.at("data_offsets").at(0), end = spec.at("data_offsets").at(1);
    tensor.bytes.resize(end - start);
    file.seekg(static_cast<std::streamoff>(8 + length + start));
    file.read(tensor.bytes.data(), static_cast<std::streamsize>(tensor.bytes.size()));
    tensors.emplace(name, std::move(tensor));
  }
  return tensors;
}
