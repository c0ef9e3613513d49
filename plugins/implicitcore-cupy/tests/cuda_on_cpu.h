// CUDA C++ for g++: a block's threads are fibers that take turns, each running until a barrier or a
// shuffle.
//
// Who runs first is chosen by the caller. With the threads in order or reversed, a warp goes on
// until the block's next barrier before another one moves; shuffled, the warps take turns. Where a
// barrier is missing, one of them reads what is not there yet, or no longer. Shared memory holds
// NaNs before a block begins, and a pattern behind its end that must survive. g++ is asked to check
// the alignment of every access (-fsanitize=alignment), and its report ends here.
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
};
static dim3 threadIdx, blockIdx, blockDim, gridDim;

constexpr unsigned LANES = 32, MOST_THREADS = 1024, STACK = 1 << 16;
constexpr unsigned SHARED = 48 << 10, MARGIN = 1 << 10;
alignas(16) double shared[(SHARED + MARGIN) / sizeof(double)];

namespace cpu {

enum class State { ready, at_block, at_warp, done };

struct Fiber {
    ucontext_t context;
    jmp_buf at;
    bool begun = false;
    unsigned shuffles = 0;
    std::vector<char> stack;
};

static std::vector<Fiber> fibers(MOST_THREADS);
static State states[MOST_THREADS];
static unsigned waiting[MOST_THREADS / LANES];  // lanes of each warp in a shuffle
static jmp_buf scheduler;
static void (*body)(const void*);
static const void* arguments;
static double exchanged[2][MOST_THREADS];
static uint64_t seed;
static const char* error;

inline void pause(State state) {
    states[threadIdx.x] = state;
    if (!_setjmp(fibers[threadIdx.x].at)) _longjmp(scheduler, 1);
}

static void live() {  // a fiber serves one block after the other
    for (;;) {
        body(arguments);
        pause(State::done);
    }
}

static void enter(unsigned thread) {
    Fiber& fiber = fibers[thread];
    threadIdx.x = thread;
    if (_setjmp(scheduler)) return;
    if (fiber.begun) _longjmp(fiber.at, 1);
    fiber.begun = true;
    fiber.stack.resize(STACK);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = STACK;
    makecontext(&fiber.context, live, 0);
    setcontext(&fiber.context);
}

static bool all(State state, unsigned first, unsigned last) {
    for (unsigned thread = first; thread < last; ++thread)
        if (states[thread] != state) return false;
    return true;
}

static bool any(State state, unsigned first, unsigned last) {
    for (unsigned thread = first; thread < last; ++thread)
        if (states[thread] == state) return true;
    return false;
}

static void release(unsigned first, unsigned last) {
    for (unsigned thread = first; thread < last; ++thread) states[thread] = State::ready;
}

static void shuffle(std::vector<unsigned>& order) {
    for (size_t i = order.size(); i > 1; --i) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        std::swap(order[i - 1], order[(seed >> 33) % i]);
    }
}

static const char* run_block(std::vector<unsigned>& order, bool random) {
    const unsigned threads = order.size();
    release(0, threads);
    for (;;) {
        bool moved = false;
        if (random) shuffle(order);
        for (size_t i = 0; i < threads; ++i) {
            const unsigned thread = order[i], warp = thread / LANES * LANES;
            if (states[thread] == State::ready) {
                enter(thread);
                moved = true;
                if (error) return error;
                if (states[thread] == State::at_warp && ++waiting[thread / LANES] == LANES) {
                    waiting[thread / LANES] = 0;
                    release(warp, warp + LANES);
                }
            }
            if (!random && i % LANES == LANES - 1 && any(State::ready, warp, warp + LANES))
                i -= LANES;  // the same warp again
        }
        if (moved) continue;
        if (all(State::done, 0, threads)) return nullptr;
        if (!all(State::at_block, 0, threads))
            return "a barrier or a shuffle that not all threads reach";
        release(0, threads);
    }
}

struct Entry {
    void (*body)(const void*);
    size_t bytes;
};
static std::map<std::string, Entry>& table() {
    static std::map<std::string, Entry> entries;
    return entries;
}
template <auto kernel, typename Arguments>
Entry entry(void (*)(Arguments)) {
    const auto call = [](const void* from) { kernel(*static_cast<const Arguments*>(from)); };
    return {call, sizeof(Arguments)};
}

}  // namespace cpu

inline void __syncthreads() { cpu::pause(cpu::State::at_block); }

inline void __syncwarp() { cpu::pause(cpu::State::at_warp); }

namespace cpu {
template <typename T>
T exchange(T value, unsigned from) {
    double* const slots = exchanged[fibers[threadIdx.x].shuffles++ % 2];
    slots[threadIdx.x] = value;
    pause(State::at_warp);
    return static_cast<T>(slots[from]);
}
}  // namespace cpu

template <typename T>
T __shfl_xor_sync(unsigned, T value, unsigned mask) {
    return cpu::exchange(value, threadIdx.x ^ mask);
}
template <typename T>
T __shfl_sync(unsigned, T value, unsigned lane) {
    return cpu::exchange(value, threadIdx.x / LANES * LANES + lane);
}

inline unsigned long long atomicAdd(unsigned long long* to, unsigned long long value) {
    const unsigned long long before = *to;
    *to += value;
    return before;
}

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

#define REPORT(name) \
    extern "C" void name(void*, void*) { \
        cpu::error = "an access that is not aligned"; \
        cpu::pause(cpu::State::done); \
    }
REPORT(__ubsan_handle_type_mismatch_v1)
REPORT(__ubsan_handle_type_mismatch_v1_abort)

struct Launch {
    // order: of the threads and blocks; 0 is one after the other, 1 the reverse, else the seed of a
    // random one
    unsigned grid[2], threads, order;
    size_t shared, bytes;  // of shared memory, and of the kernel's struct
};

// Run a kernel; what comes back is what went wrong.
extern "C" const char* run(const char* name, const Launch* launch, const void* arguments) {
    const auto [grid, threads, order, size, bytes] = *launch;
    const auto found = cpu::table().find(name);
    if (found == cpu::table().end()) return "an unknown kernel";
    if (found->second.bytes != bytes) return "a struct of another size";
    if (threads == 0 || threads > MOST_THREADS || threads % LANES || size > SHARED)
        return "a block that cannot be";
    if (grid[0] == 0 || grid[1] == 0 || grid[0] > 0x7fffffff || grid[1] > 65535)
        return "a grid that cannot be";
    cpu::body = found->second.body;
    cpu::arguments = arguments;
    cpu::seed = order;
    cpu::error = nullptr;
    blockDim = {threads, 1, 1};
    gridDim = {grid[0], grid[1], 1};
    std::vector<unsigned> turns(threads);
    for (unsigned i = 0; i < threads; ++i) turns[i] = order == 1 ? threads - 1 - i : i;
    const uint64_t blocks = uint64_t(grid[0]) * grid[1];
    for (uint64_t i = 0; i < blocks; ++i) {
        const uint64_t block = order == 1 ? blocks - 1 - i : i;
        blockIdx = {unsigned(block % grid[0]), unsigned(block / grid[0]), 0};
        std::memset(shared, 0xff, size);
        char* const end = reinterpret_cast<char*>(shared) + size;
        std::memset(end, 0x5a, MARGIN);
        if (const char* error = cpu::run_block(turns, order > 1)) {
            // the fibers stand in the middle of the kernel
            for (cpu::Fiber& fiber : cpu::fibers) fiber.begun = false, fiber.shuffles = 0;
            std::memset(cpu::waiting, 0, sizeof cpu::waiting);
            return error;
        }
        for (unsigned k = 0; k < MARGIN; ++k)
            if (end[k] != 0x5a) return "a write behind the shared memory";
    }
    return nullptr;
}
