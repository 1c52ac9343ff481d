// An ExecuTorch program made by `r2mrf export CKPT -o x.pte`, run in C++ as on a phone:
//
//     edge MODEL.pte PHOTOGRAPH.ppm MAP.pgm [MAP.raw]
//
// The photograph is a binary PPM (P6, 8 bits) of the size that the program takes, since fitting it belongs to the application.
// The map is written as a PGM, 255 = in focus, and as the floats that were computed.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <cmath>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

using executorch::extension::Module;

// The value of a result, or the name of the error that stands in its place.
template <class T>
T value(executorch::runtime::Result<T> result, const std::string& what) {
  if (!result.ok()) throw std::runtime_error(what + ": " + executorch::runtime::to_string(result.error()));
  return std::move(result.get());
}

std::vector<uint8_t> readPhotograph(const std::string& path, int32_t height, int32_t width) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  int32_t columns = 0, rows = 0, most = 0;
  file >> kind >> columns >> rows >> most;
  file.get();  // the one space before the pixels
  if (!file || kind != "P6" || most != 255) throw std::runtime_error(path + " is not a binary PPM of 8 bits");
  if (rows != height || columns != width)
    throw std::runtime_error(path + " must have " + std::to_string(width) + "x" + std::to_string(height) + " pixels");
  std::vector<uint8_t> pixels(size_t(3) * height * width);
  if (!file.read(reinterpret_cast<char*>(pixels.data()), pixels.size())) throw std::runtime_error(path + " is cut off");
  return pixels;
}

int run(const std::string& model, const std::string& photograph, const std::string& pgm, const char* raw) {
  Module module(model, Module::LoadMode::Mmap);
  const auto meta = value(module.method_meta("forward"), model);
  const auto input = value(meta.input_tensor_meta(0), model);
  const auto sizes = input.sizes();  // [1, height, width, 3]
  if (sizes.size() != 4 || sizes[0] != 1 || sizes[3] != 3 || input.scalar_type() != executorch::aten::ScalarType::Byte)
    throw std::runtime_error(model + " takes no single RGB image: export it with --io image");
  auto pixels = readPhotograph(photograph, sizes[1], sizes[2]);
  auto image = executorch::extension::from_blob(
      pixels.data(), {1, sizes[1], sizes[2], 3}, executorch::aten::ScalarType::Byte);
  const auto outputs = value(module.forward(image), model);
  const auto map = outputs.at(0).toTensor();  // [1, 1, height, width], 0 to 1
  const float* focus = map.const_data_ptr<float>();
  std::ofstream picture(pgm, std::ios::binary);
  picture << "P5\n" << map.size(3) << ' ' << map.size(2) << "\n255\n";
  for (ssize_t i = 0; i < map.numel(); ++i) picture.put(static_cast<char>(std::lround(255 * focus[i])));
  if (raw) std::ofstream(raw, std::ios::binary).write(reinterpret_cast<const char*>(focus), map.nbytes());
  return picture ? 0 : (std::cerr << pgm << " cannot be written\n", 1);
}

int main(int count, char** arguments) try {
  if (count < 4 || count > 5) throw std::runtime_error("usage: edge MODEL.pte PHOTOGRAPH.ppm MAP.pgm [MAP.raw]");
  return run(arguments[1], arguments[2], arguments[3], count == 5 ? arguments[4] : nullptr);
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 2;
}
