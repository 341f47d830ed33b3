// Runs an artefact on an image, without Python: features' checksums and the time.
//
//   laud_run NET.pt2 IMAGE.ppm [--runs N] [--threads N] [--mean R G B] [--std R G B]
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <chrono>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct Arguments {
  std::string net, image;
  int runs = 10, threads = 0;
  std::vector<float> mean{123.675f, 116.28f, 103.53f}, std{58.395f, 57.12f, 57.375f};
};

Arguments parse(int argc, char** argv) {
  Arguments own;
  std::vector<std::string> words(argv + 1, argv + argc), files;
  for (size_t i = 0; i < words.size(); i++) {
    const auto next = [&] {
      if (++i >= words.size()) throw std::runtime_error(words[i - 1] + " needs a value");
      return std::stof(words[i]);
    };
    if (words[i] == "--runs") own.runs = static_cast<int>(next());
    else if (words[i] == "--threads") own.threads = static_cast<int>(next());
    else if (words[i] == "--mean") for (float& value : own.mean) value = next();
    else if (words[i] == "--std") for (float& value : own.std) value = next();
    else files.push_back(words[i]);
  }
  if (files.size() != 2 || own.runs < 1)
    throw std::runtime_error("usage: laud_run NET.pt2 IMAGE.ppm [--runs N] [--threads N] "
                             "[--mean R G B] [--std R G B], N at least 1");
  own.net = files[0], own.image = files[1];
  return own;
}

// A binary PPM (P6) as (1, 3, H, W), normalised.
at::Tensor read_image(const Arguments& arguments) {
  std::ifstream file(arguments.image, std::ios::binary);
  std::string kind;
  int64_t width = 0, height = 0, top = 0;
  file >> kind >> width >> height >> top;
  file.get();
  if (!file || kind != "P6" || top != 255 || width < 1 || height < 1)
    throw std::runtime_error("IMAGE must be a binary PPM (P6) of 8 bits, got " + arguments.image);
  at::Tensor pixels = at::empty({height, width, 3}, at::kByte);
  file.read(static_cast<char*>(pixels.data_ptr()), pixels.numel());
  if (!file) throw std::runtime_error("IMAGE must have all of its pixels, got " + arguments.image);
  const at::Tensor mean = at::tensor(at::ArrayRef<float>(arguments.mean)),
                   std = at::tensor(at::ArrayRef<float>(arguments.std));
  return ((pixels.to(at::kFloat) - mean) / std).permute({2, 0, 1}).unsqueeze(0).contiguous();
}

void run(const Arguments& arguments) {
  const c10::InferenceMode inference;
  if (arguments.threads > 0) at::set_num_threads(arguments.threads);
  const at::Tensor image = read_image(arguments);
  torch::inductor::AOTIModelPackageLoader net(arguments.net);
  std::vector<at::Tensor> outputs = net.run({image});  // the first run warms up
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < arguments.runs; i++) outputs = net.run({image});
  const std::chrono::duration<double, std::milli> spent = std::chrono::steady_clock::now() - start;
  for (size_t i = 0; i < outputs.size(); i++)
    std::cout << "output " << i << " shape " << outputs[i].sizes() << " checksum "
              << outputs[i].to(at::kDouble).abs().sum().item<double>() << "\n";
  std::cout << "time " << spent.count() / arguments.runs << " ms\n";
}

}  // namespace

int main(int argc, char** argv) {
  std::cout.precision(12);
  try {
    run(parse(argc, argv));
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}
