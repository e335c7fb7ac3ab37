// Several contexts of one engine in threads of their own, for the thread sanitizer: `threads LIBRARY FIELD ROUNDS`.
//
// A program without Python: it opens the plugin library, makes the plugin of a field, and lets each thread attach,
// change shapes, launch and detach, over the stand-in driver that is in the library path.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

extern "C" {
void* host_open(char const* path, int as_version);
void* host_create(void* creator, void const* data, int size, int phase, int type);
void* host_clone(void* plugin);
void* host_attach(void* plugin);
void host_destroy(void* plugin);
int host_shapes(void* plugin, int count, int const* ranks, int64_t const* dims);
int host_enqueue(void* plugin, void const* const* inputs, void* const* outputs, void* stream);
size_t host_log(char* into, size_t size);
}

int main(int, char** arguments)
{
    std::ifstream file(arguments[2], std::ios::binary);
    std::string field{std::istreambuf_iterator<char>(file), {}};
    int rounds = std::atoi(arguments[3]);
    void* creator = host_open(arguments[1], 110100);
    std::vector<std::thread> threads;
    std::vector<int> failures(8);
    void* shared = host_create(creator, field.data(), static_cast<int>(field.size()), 1, 3);
    for (size_t number = 0; number < failures.size(); ++number) {
        threads.emplace_back([&, number] {
            int const ranks[] = {2, 2};
            alignas(16) char memory[64];
            void const* inputs[] = {memory, memory};
            void* outputs[] = {memory};
            for (int round = 0; round < rounds; ++round) {
                // An engine of its own every other time, which shares the kernels.
                bool own = round % 2 == 0;
                void* engine = own ? host_create(creator, field.data(), static_cast<int>(field.size()), 1, 3) : host_clone(shared);
                void* context = host_attach(engine);
                int64_t const rows = 1 + static_cast<int64_t>(number) + round % 7;
                int64_t const dims[] = {rows, 96, rows, 96};
                failures[number] += host_shapes(context, 2, ranks, dims) != 0;
                failures[number] += host_enqueue(context, inputs, outputs, nullptr) != 0;
                int64_t const wrong[] = {-1, 96, -1, 96};
                failures[number] += host_shapes(context, 2, ranks, wrong) == 0; // this one is logged
                host_destroy(engine);
                host_destroy(context);
            }
        });
    }
    int failed = 0;
    for (size_t number = 0; number < threads.size(); ++number) {
        threads[number].join();
        failed += failures[number];
    }
    host_destroy(shared);
    std::printf("%zu threads, %d rounds each: %d calls went wrong\n", threads.size(), rounds, failed);
    return failed == 0 ? 0 : 1;
}
