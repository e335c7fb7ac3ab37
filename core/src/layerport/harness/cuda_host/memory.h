// The memory that a kernel may touch, and the check of each of its accesses.
//
// A kernel is compiled as for GCC's thread sanitiser, which calls a function before each read and write; these
// functions are here and look up whose memory it is.  Every buffer lies alone in a wide slot of one reserved range, so
// that an address far past its end is still known for what it missed.  Memory that is none of ours (the stack,
// constant tables) passes.  In the address-sanitiser build that sanitiser checks, and each buffer is an exact heap block.
// Part of runtime.cpp, for tests only.
#pragma once

#include <vector>

#include "fibers.h"

namespace cuda_host {

struct Buffer {
    std::string name;
    size_t bytes;
    unsigned char* data;
    bool input;
};

struct Shared {
    std::string name;
    unsigned char* address;
    size_t bytes;
};

inline std::vector<Buffer> buffers;
inline std::vector<Shared> shared_statics;
inline std::vector<size_t> null_parameters;
inline size_t shared_bytes = 0;
inline unsigned char poison_byte = 0xff;

alignas(65536) unsigned char dynamic_memory[SHARED_GAP + SHARED_LIMIT + SHARED_GAP];

namespace detail {

constexpr size_t ALIGNMENT = 256;  // of what a device allocates
constexpr uintptr_t NULL_BYTES = 65536;

// Which thread of which block has written a byte, and how many times threads had met by then.
struct Writer {
    size_t block;
    uint32_t thread;
    uint32_t meetings;
};
constexpr uint32_t NOBODY = UINT32_MAX;

struct Slot {
    uintptr_t begin;
    size_t bytes;
    bool input;
    std::vector<Writer> writers;  // of each byte of an output; empty where nobody asks
};

inline std::vector<Slot> slots;
inline uintptr_t range_begin = 0;
inline size_t range_bytes = 0;
inline unsigned slot_bits = 0;
inline uintptr_t statics_begin = 0;
inline size_t statics_bytes = 0;

inline size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }

// Reserves a slot for each of `count` buffers of at most `most` bytes, with as much again before and behind it.
inline void reserve_slots(size_t count, size_t most) {
#if !defined(__SANITIZE_ADDRESS__)
    if (count == 0) return;
    for (unsigned bits : {34u, 30u, 26u}) {
        while ((size_t{1} << bits) < 4 * most + 16 * PAGE_BYTES) ++bits;
        void* memory =
            mmap(nullptr, count << bits, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) continue;
        range_begin = reinterpret_cast<uintptr_t>(memory);
        range_bytes = count << bits;
        slot_bits = bits;
        return;
    }
    fail("no address space for " + std::to_string(count) + " buffers");
#endif
}

// `offset` is how far the data is from an address of the alignment that a device allocation has.
inline unsigned char* new_memory(const std::string& name, size_t bytes, size_t offset) {
#if defined(__SANITIZE_ADDRESS__)
    void* memory = nullptr;
    if (posix_memalign(&memory, ALIGNMENT, bytes + offset) != 0) fail("no memory for " + name);
    __asan_poison_memory_region(memory, offset);
    return static_cast<unsigned char*>(memory) + offset;
#else
    // Its last bytes are at a page that cannot be touched, for what the compiler does not show us.
    const size_t kept = round_up(bytes + offset, ALIGNMENT);
    const size_t pages = round_up(kept, PAGE_BYTES);
    unsigned char* end = reinterpret_cast<unsigned char*>(range_begin + (slots.size() << slot_bits)) +
                         round_up((size_t{1} << slot_bits) / 2 + pages, PAGE_BYTES);
    if (pages > 0 && mprotect(end - pages, pages, PROT_READ | PROT_WRITE) != 0) fail("no memory for " + name);
    memset(end - kept, poison_byte, kept);
    unsigned char* data = end - kept + offset;
    return data;
#endif
}

inline void add_buffer(std::string name, size_t bytes, size_t offset, bool input) {
    unsigned char* data = new_memory(name, bytes, offset);
    slots.push_back({reinterpret_cast<uintptr_t>(data), bytes, input, {}});
    if (once && !input) slots.back().writers.assign(bytes, {0, NOBODY, 0});
    buffers.push_back({std::move(name), bytes, data, input});
}

// Inputs become unwritable where the processor sees it too.
inline void protect_inputs() {
#if !defined(__SANITIZE_ADDRESS__)
    for (const Buffer& buffer : buffers) {
        auto first = reinterpret_cast<uintptr_t>(buffer.data) / PAGE_BYTES * PAGE_BYTES;
        const size_t bytes = reinterpret_cast<uintptr_t>(buffer.data) + buffer.bytes - first;
        if (buffer.input && buffer.bytes > 0) mprotect(reinterpret_cast<void*>(first), bytes, PROT_READ);
    }
#endif
}

inline std::string distance_from(uintptr_t address, size_t bytes, uintptr_t begin, size_t size) {
    if (address < begin) return std::to_string(begin - address) + " bytes before its start";
    const uintptr_t first = address + bytes > begin + size && address < begin + size ? begin + size : address;
    return std::to_string(first - begin - size) + " bytes past its end";
}

// What is wrong with an access, or nothing.
inline std::string describe(uintptr_t address, size_t bytes, bool write) {
    const std::string does = write ? "writes " : "reads ";
    if (address < NULL_BYTES || address > UINTPTR_MAX - NULL_BYTES) {
        std::string which;
        for (const size_t place : null_parameters) which += (which.empty() ? " " : ", ") + std::to_string(place);
        return does + "through a null pointer" +
               (which.empty() ? "" : "; an absent tensor is null, here that is parameter" + which + " of the kernel");
    }
    if (address - range_begin < range_bytes) {
        const Buffer& buffer = buffers[(address - range_begin) >> slot_bits];
        const auto begin = reinterpret_cast<uintptr_t>(buffer.data);
        if (address >= begin && address + bytes <= begin + buffer.bytes) {
            if (!buffer.input || !write) return "";
            return "writes its input " + buffer.name + ", byte " + std::to_string(address - begin);
        }
        return does + buffer.name + " " + distance_from(address, bytes, begin, buffer.bytes) + ", it has " +
               std::to_string(buffer.bytes) + " bytes";
    }
    const auto dynamic = reinterpret_cast<uintptr_t>(dynamic_memory);
    if (address - dynamic < sizeof dynamic_memory) {
        const uintptr_t begin = dynamic + SHARED_GAP;
        if (address >= begin && address + bytes <= begin + shared_bytes) return "";
        return does + "the dynamic shared memory " + distance_from(address, bytes, begin, shared_bytes) +
               ", the launch rule asks for shared=" + std::to_string(shared_bytes);
    }
    if (address - statics_begin < statics_bytes) {
        const Shared* near = nullptr;
        for (const Shared& one : shared_statics) {
            const auto begin = reinterpret_cast<uintptr_t>(one.address);
            if (address >= begin && address + bytes <= begin + one.bytes) return "";
            if (near == nullptr || begin <= address) near = &one;
        }
        return does + "the shared memory " + near->name + " " +
               distance_from(address, bytes, reinterpret_cast<uintptr_t>(near->address), near->bytes) + ", it has " +
               std::to_string(near->bytes) + " bytes";
    }
    return "";
}

[[gnu::noinline, gnu::cold]] inline void judge(uintptr_t address, size_t bytes, bool write, void* from) {
    if (current == nullptr) return;
    const std::string fault = describe(address, bytes, write);
    if (!fault.empty()) fail(place_of(*current) + " " + fault, from);
}

// That no other thread writes there too, unless one of the two knows of the other by then: from a barrier between them,
// or from an atomic operation.
[[gnu::noinline]] inline void own(Slot& slot, uintptr_t at, size_t bytes, void* from) {
    if (current == nullptr || knows_others) return;
    const uint3 here = block.index;
    const size_t number = here.x + block.grid.x * (here.y + static_cast<size_t>(block.grid.y) * here.z);
    const Writer self{number, static_cast<uint32_t>(current - threads.data()), meetings};
    for (size_t place = at; place < at + bytes; ++place) {
        Writer& last = slot.writers[place];
        const bool same = last.block == self.block && (last.thread == self.thread || last.meetings != self.meetings);
        if (last.thread != NOBODY && !same) {
            const dim3 size = block.size;
            const Buffer& buffer = buffers[static_cast<size_t>(&slot - slots.data())];
            char other[200];
            snprintf(
                other, sizeof other, "thread (%u, %u, %u) of block (%zu, %zu, %zu)", last.thread % size.x,
                last.thread / size.x % size.y, last.thread / size.x / size.y, last.block % block.grid.x,
                last.block / block.grid.x % block.grid.y, last.block / block.grid.x / block.grid.y
            );
            fail(
                place_of(*current) + " writes " + buffer.name + ", byte " + std::to_string(place) + ", which " + other +
                    " writes too; let one thread write it, or all of them by atomic operations",
                from
            );
        }
        last = self;
    }
}

inline void check(const void* pointer, size_t bytes, bool write, void* from, bool atomic = false) {
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    const uintptr_t place = address - range_begin;
    if (__builtin_expect(place < range_bytes, 1)) {
        Slot& slot = slots[place >> slot_bits];
        const uintptr_t at = address - slot.begin;
        if (__builtin_expect(at <= slot.bytes && bytes <= slot.bytes - at && !(write && slot.input), 1)) {
            if (__builtin_expect(write && once && !atomic, 0)) own(slot, at, bytes, from);
            return;
        }
        judge(address, bytes, write, from);
    } else if (address - reinterpret_cast<uintptr_t>(dynamic_memory) < sizeof dynamic_memory) {
        const uintptr_t at = address - reinterpret_cast<uintptr_t>(dynamic_memory) - SHARED_GAP;
        if (at > shared_bytes || bytes > shared_bytes - at) judge(address, bytes, write, from);
    } else if (address - statics_begin < statics_bytes) {
        for (const Shared& one : shared_statics) {
            const uintptr_t at = address - reinterpret_cast<uintptr_t>(one.address);
            if (at <= one.bytes && bytes <= one.bytes - at) return;
        }
        judge(address, bytes, write, from);
    } else if (address < NULL_BYTES) {
        judge(address, bytes, write, from);
    }
}

// Whether it is a variable of the thread that runs.
inline bool is_local(const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) - reinterpret_cast<uintptr_t>(current->stack) < STACK_BYTES;
}

inline bool is_shared(const void* pointer) {
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    return address - reinterpret_cast<uintptr_t>(dynamic_memory) < sizeof dynamic_memory ||
           address - statics_begin < statics_bytes;
}

inline void check_atomic(const void* pointer, size_t bytes, bool write, void* from) {
    if (current != nullptr && is_local(pointer)) {
        fail(place_of(*current) + " makes an atomic operation on a variable of its own, which a GPU refuses", from);
    }
    check(pointer, bytes, write, from, true);
    knows_others = true;
}

}  // namespace detail

void check_atomic(const void* address, size_t bytes) {
#if !defined(__SANITIZE_ADDRESS__)
    detail::check_atomic(address, bytes, true, __builtin_return_address(0));
#endif
}

// That a function which addresses global memory alone is given such an address.
void check_global(const void* address, const char* function) {
    if (reinterpret_cast<uintptr_t>(address) - detail::range_begin < detail::range_bytes || current == nullptr) return;
    const char* kind = detail::is_shared(address)  ? "shared memory"
                       : detail::is_local(address) ? "a variable of its own"
                                                   : nullptr;
    if (kind == nullptr) return;
    fail(
        place_of(*current) + " gives " + function + " the address of " + kind +
            ", and it takes global memory only; use a plain access",
        __builtin_return_address(0)
    );
}

void check_access(const void* address, size_t bytes, bool write) {
#if !defined(__SANITIZE_ADDRESS__)
    detail::check(address, bytes, write, __builtin_return_address(0));
#endif
}

}  // namespace cuda_host

// What the compiler calls before an access, and in place of one that is misaligned.
extern "C" {

#if !defined(__SANITIZE_ADDRESS__)
void __tsan_init() {}

#define LAYERPORT_ACCESS(NAME, BYTES)                                                                              \
    void __tsan_read##NAME(void* address) {                                                                        \
        ::cuda_host::detail::check(address, BYTES, false, __builtin_return_address(0));                            \
    }                                                                                                              \
    void __tsan_write##NAME(void* address) {                                                                       \
        ::cuda_host::detail::check(address, BYTES, true, __builtin_return_address(0));                             \
    }                                                                                                              \
    void __tsan_volatile_read##NAME(void* address) {                                                               \
        ::cuda_host::detail::check(address, BYTES, false, __builtin_return_address(0));                            \
        ::cuda_host::let_others_run();                                                                             \
    }                                                                                                              \
    void __tsan_volatile_write##NAME(void* address) {                                                              \
        ::cuda_host::detail::check(address, BYTES, true, __builtin_return_address(0));                             \
    }                                                                                                              \
    void __tsan_unaligned_read##NAME(void* address) { __tsan_read##NAME(address); }                                \
    void __tsan_unaligned_write##NAME(void* address) { __tsan_write##NAME(address); }                              \
    void __tsan_unaligned_volatile_read##NAME(void* address) { __tsan_volatile_read##NAME(address); }              \
    void __tsan_unaligned_volatile_write##NAME(void* address) { __tsan_volatile_write##NAME(address); }
LAYERPORT_ACCESS(1, 1)
LAYERPORT_ACCESS(2, 2)
LAYERPORT_ACCESS(4, 4)
LAYERPORT_ACCESS(8, 8)
LAYERPORT_ACCESS(16, 16)
#undef LAYERPORT_ACCESS

void __tsan_read_range(void* address, size_t bytes) {
    ::cuda_host::detail::check(address, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
    ::cuda_host::detail::check(address, bytes, true, __builtin_return_address(0));
}
#endif

// As GCC and Clang lay it out for their undefined-behaviour sanitiser.
struct LayerportType {
    unsigned short kind, info;
    char name[1];
};
struct LayerportTypeMismatch {
    const char* file;
    unsigned line, column;
    const LayerportType* type;
    unsigned char log_alignment;
    unsigned char is_write;
};

// GCC has its own declaration of the name.
void layerport_misaligned(LayerportTypeMismatch*, uintptr_t) __asm__("__ubsan_handle_type_mismatch_v1_abort");
void layerport_misaligned(LayerportTypeMismatch* what, uintptr_t address) {
    void* from = __builtin_return_address(0);
    if (::cuda_host::current == nullptr) return;
    // A null pointer is aligned, but what lies behind one may not be.
    std::string fault = ::cuda_host::detail::describe(address, 1, what->is_write == 1);
    if (fault.empty() || address >= ::cuda_host::detail::NULL_BYTES) {
        fault = "makes a misaligned access: " + std::string(static_cast<const char*>(what->type->name)) + " at an address that is no multiple of " +
                std::to_string(1u << what->log_alignment);
    }
    ::cuda_host::fail(::cuda_host::place_of(*::cuda_host::current) + " " + fault, from);
}
}
