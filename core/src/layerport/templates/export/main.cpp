// Opens a plan without Python, runs its samples and compares the outputs with Torch's.
// Exit code 0: all agree; 1: an output differs; 2: it cannot be run, and the lines before say why.

#include "samples.h"

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>
#include <iostream>
#include <memory>

using namespace nvinfer1;

struct Logger : ILogger {
    void log(Severity severity, char const* text) noexcept override
    {
        if (severity <= Severity::kWARNING) {
            std::cerr << text << '\n';
        }
    }
};

// Gives an output memory when its size is known, which may be after the launch that computes it.
struct Output : IOutputAllocator {
    void* reallocateOutputAsync(char const*, void*, uint64_t size, uint64_t, cudaStream_t) noexcept override
    {
        cudaFree(memory);
        memory = nullptr;
        return cudaMalloc(&memory, size == 0 ? 1 : size) == cudaSuccess ? memory : nullptr;
    }
    void notifyShape(char const*, Dims const& dims) noexcept override { shape.assign(dims.d, dims.d + dims.nbDims); }
    ~Output() override { cudaFree(memory); }
    void* memory = nullptr;
    std::vector<int64_t> shape;
};

void check(bool done, std::string const& what)
{
    if (!done) {
        throw std::runtime_error(what + " failed: " + cudaGetErrorString(cudaGetLastError()));
    }
}

int run(std::string const& folder)
{
    Logger logger;
    std::unique_ptr<IRuntime> runtime{createInferRuntime(logger)};
    check(runtime != nullptr, "starting TensorRT");
    std::string library = folder + "/liblayerport_plugins.so"; // is there where a layer is a plugin
    check(!std::ifstream(library) || getPluginRegistry()->loadLibrary(library.c_str()) != nullptr,
        "loading the plugin library");
    std::vector<char> plan = read_file(folder + "/model.plan");
    std::unique_ptr<ICudaEngine> engine{runtime->deserializeCudaEngine(plan.data(), plan.size())};
    check(engine != nullptr, "opening the plan");
    std::unique_ptr<IExecutionContext> context{engine->createExecutionContext()};
    check(context != nullptr, "making a context");
    cudaStream_t stream = nullptr;
    check(cudaStreamCreate(&stream) == cudaSuccess, "making a stream");
    std::vector<Sample> samples = read_samples(folder);
    std::map<std::string, Output> outputs;
    for (Sample const& one : samples) {
        if (!one.is_input) {
            check(context->setOutputAllocator(one.name.c_str(), &outputs[one.name]), "binding " + one.name);
            continue;
        }
        Dims dims{static_cast<int32_t>(one.shape.size()), {}};
        std::copy(one.shape.begin(), one.shape.end(), dims.d);
        bool on_host = engine->getTensorLocation(one.name.c_str()) == TensorLocation::kHOST;
        void* memory = const_cast<char*>(one.data.data());
        if (!on_host) {
            check(cudaMalloc(&memory, one.data.size() + 1) == cudaSuccess, "allocating " + one.name);
            check(cudaMemcpy(memory, one.data.data(), one.data.size(), cudaMemcpyHostToDevice) == cudaSuccess, "copying");
        }
        check(context->setInputShape(one.name.c_str(), dims), "setting the shape of " + one.name);
        check(context->setTensorAddress(one.name.c_str(), memory), "binding " + one.name);
    }
    check(context->enqueueV3(stream), "launching");
    check(cudaStreamSynchronize(stream) == cudaSuccess, "running");
    bool same = true;
    for (Sample const& one : samples) {
        if (!one.is_input) {
            std::vector<char> got(one.data.size());
            Output const& output = outputs[one.name];
            bool fits = output.shape == one.shape
                && cudaMemcpy(got.data(), output.memory, got.size(), cudaMemcpyDefault) == cudaSuccess;
            bool passed = fits && agrees(one, got);
            std::cout << one.name << ": " << (passed ? "pass" : fits ? "FAIL" : "FAIL: another shape") << '\n';
            same = same && passed;
        }
    }
    return same ? 0 : 1;
}

int main(int count, char** arguments)
{
    try {
        return run(count > 1 ? arguments[1] : ".");
    } catch (std::exception const& error) {
        std::cerr << error.what() << '\n';
        return 2;
    }
}
