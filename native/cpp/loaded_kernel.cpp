#include "loaded_kernel.h"

#include "fault.h"

namespace layerport {

class LoadedImage {
public:
    explicit LoadedImage(Image const& image, std::string const& label)
    {
        Driver const& cuda = driver();
        cuda.check(
            cuda.load_library(&library, image.data.data(), nullptr, nullptr, 0, nullptr, nullptr, 0), label,
            "cuLibraryLoadData");
    }

    ~LoadedImage() { driver().unload_library(library); }

    LoadedImage(LoadedImage const&) = delete;
    LoadedImage& operator=(LoadedImage const&) = delete;

    void* library = nullptr;
    std::mutex lock;
    std::map<std::pair<void*, int>, int64_t> widened; // kernel and device -> bytes
};

namespace {

std::mutex lock;
// Never destroyed: plugins may be destroyed after everything else at the end of a process.
std::map<std::string, std::weak_ptr<LoadedImage>>& table()
{
    static auto& made = *new std::map<std::string, std::weak_ptr<LoadedImage>>;
    return made;
}

std::shared_ptr<LoadedImage> load(Image const& image, std::string const& label)
{
    std::lock_guard<std::mutex> guard(lock);
    std::weak_ptr<LoadedImage>& place = table()[image.digest];
    std::shared_ptr<LoadedImage> found = place.lock();
    if (found == nullptr) {
        found = std::make_shared<LoadedImage>(image, label);
        place = found;
    }
    return found;
}

} // namespace

void LoadedKernel::widen_shared(int64_t dynamic) const
{
    constexpr int max_dynamic_shared = 8;
    Driver const& cuda = driver();
    int device = cuda.device();
    // The limit must only grow, whoever asks meanwhile: a launch of another context may rely on it already.
    std::lock_guard<std::mutex> guard(image->lock);
    int64_t& widened = image->widened[{handle, device}];
    if (widened < dynamic) {
        cuda.check(cuda.set_kernel_attribute(max_dynamic_shared, static_cast<int>(dynamic), handle, device), label,
            "cuKernelSetAttribute");
        widened = dynamic;
    }
}

LoadedKernel load_kernel(Image const& image, std::string const& symbol, Cubin const& cubin)
{
    std::string label = "kernel " + symbol + " for sm_" + std::to_string(cubin.architecture);
    LoadedKernel kernel{load(image, label), cubin, nullptr, label};
    Driver const& cuda = driver();
    cuda.check(
        cuda.library_kernel(&kernel.handle, kernel.image->library, symbol.c_str()), label, "cuLibraryGetKernel");
    return kernel;
}

} // namespace layerport
