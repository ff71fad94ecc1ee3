// Streams, events and graphs on the software device: which work waits, and which may run at the same time.
#include <cstring>

#include "runtime.h"

namespace software {

namespace {

// Finds the launches that streams may start after one has ended.
class Queues {
 public:
  explicit Queues(std::vector<SoftwareStream*> streams) : streams_(std::move(streams)) {
    for (SoftwareStream* stream : streams_) {
      stream->done = nullptr, stream->busy = false;
      waiting_ += stream->queue.size();
    }
  }
  ~Queues() {
    for (const auto& mark : reached_) mark->done = nullptr;
  }
  // Whether a stream waits for a mark that nothing will reach.
  bool are_stuck() const {
    return std::any_of(streams_.begin(), streams_.end(), [](SoftwareStream* s) { return !s->queue.empty(); });
  }
  size_t waiting() const {
    return waiting_;
  }
  std::vector<Launch*> next(Launch* ended) {
    if (ended != nullptr) {
      SoftwareStream& stream = *owners_[ended];
      stream.busy = false;
      if (waiting_ > 1) stream.done = executor().knowledge_after(*ended);
    }
    std::vector<Launch*> found;
    // One stream may reach the mark that another waits for.
    for (bool moved = true; moved;) {
      moved = false;
      for (SoftwareStream* stream : streams_) {
        while (!stream->busy && !stream->queue.empty() && take(*stream, found)) moved = true;
      }
    }
    return found;
  }

 private:
  // Takes the stream's next work; false if it must wait.
  bool take(SoftwareStream& stream, std::vector<Launch*>& found) {
    const Work work = stream.queue.front();
    if (work.wait != nullptr && !work.wait->reached) return false;
    stream.queue.pop_front();
    if (work.wait != nullptr) stream.done = joined(stream.done, work.wait->done);
    if (work.record != nullptr) {
      *work.record = {true, stream.done};
      reached_.push_back(work.record);
    }
    if (work.launch == nullptr) return true;
    auto launch = std::make_shared<Launch>(*work.launch);
    launch->after = stream.done;
    owners_[launch.get()] = &stream;
    found.push_back(launch.get());
    alive_.push_back(std::move(launch));
    return stream.busy = true;
  }

  std::vector<SoftwareStream*> streams_;
  size_t waiting_ = 0;
  std::map<Launch*, SoftwareStream*> owners_;
  std::vector<std::shared_ptr<Launch>> alive_;
  std::vector<std::shared_ptr<Mark>> reached_;
};

void run_queued(std::vector<SoftwareStream*> streams) {
  Runtime& r = runtime();
  Executor& run = executor();
  Queues queues(std::move(streams));
  if (queues.waiting() == 0) return;
  run.memory.begin_run();
  forget_atomics();
  run.run([&](Launch* ended) { return queues.next(ended); });
  if (queues.are_stuck()) throw Fault{"a stream waits for an event that nothing before it records"};
  for (const auto& [begin, bytes] : r.tickets) {
    const auto* first = reinterpret_cast<const unsigned*>(begin);
    const auto* last = first + bytes / sizeof(unsigned);
    const auto* left = std::find_if(first, last, [](unsigned ticket) { return ticket != 0; });
    if (left != last) {
      throw Fault{"a ticket that is " + std::to_string(*left) + ", not zero, when all is done: number " +
                  std::to_string(left - first)};
    }
  }
}

cudaError_t run_now(std::vector<SoftwareStream*> streams) {
  try {
    run_queued(std::move(streams));
  } catch (const Fault& found) {
    Runtime& r = runtime();
    for (const auto& [begin, bytes] : r.tickets) std::memset(reinterpret_cast<void*>(begin), 0, bytes);
    for (SoftwareStream* stream : r.all()) {
      for (const Work& work : stream->queue) {
        if (work.record != nullptr) work.record->reached = true;
      }
      stream->queue.clear();
    }
    r.fault = found.text;
    return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t submit(SoftwareStream& stream, Work work) {
  Runtime& r = runtime();
  if (stream.capture != nullptr) {
    stream.capture->work.push_back(std::move(work));
    if (r.call != nullptr) stream.capture->holdings.push_back(r.call);
    return cudaSuccess;
  }
  stream.queue.push_back(std::move(work));
  if (r.holds_back) {
    if (r.call != nullptr) r.kept.push_back(r.call);
    return cudaSuccess;
  }
  return run_now({&stream});
}

}  // namespace software

using namespace software;

cudaError_t cudaDeviceSynchronize() {
  if (const cudaError_t refused = refused_in_capture(); refused != cudaSuccess) return reported(refused);
  const cudaError_t status = run_now(runtime().all());
  runtime().kept.clear();
  return reported(status);
}

// All streams run: this one may wait for marks of others.
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return cudaDeviceSynchronize();
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = runtime().events.emplace_back(std::make_unique<SoftwareEvent>()).get();
  return cudaSuccess;
}

// Not supported in a capture, where events tell how streams branch.
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  Runtime& r = runtime();
  if (r.stream(stream).capture != nullptr) return reported(cudaErrorStreamCaptureUnsupported);
  event->mark = std::make_shared<Mark>();
  return submit(r.stream(stream), {nullptr, event->mark, nullptr});
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event) {
  Runtime& r = runtime();
  if (r.stream(stream).capture != nullptr) return reported(cudaErrorStreamCaptureUnsupported);
  return event->mark == nullptr ? cudaSuccess : submit(r.stream(stream), {nullptr, nullptr, event->mark});
}

// Runs as a kernel of one thread.
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  struct Fill {
    char* to;
    int value;
    size_t bytes;
  };
  constexpr auto kFill = +[](const void*, void* arguments) {
    const Fill& fill = *static_cast<const Fill*>(arguments);
    for (size_t i = 0; i < fill.bytes; ++i) access(fill.to + i, 1, Access::write);
    std::memset(fill.to, fill.value, fill.bytes);
  };
  const void* kernel = reinterpret_cast<const void*>(kFill);
  runtime().names[kernel] = {"memset", "memset"};
  const Fill fill{static_cast<char*>(to), value, bytes};
  cudaLaunchConfig_t config{};
  config.stream = stream;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;  // it needs no loading
  cudaThreadExchangeStreamCaptureMode(&mode);
  const cudaError_t status = software_launch(&config, kernel, kFill, &fill, sizeof(fill));
  cudaThreadExchangeStreamCaptureMode(&mode);
  return status;
}
