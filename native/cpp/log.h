// Messages to TensorRT's own log, or to standard error where that cannot be reached.
#pragma once

#include "tensorrt.h"
#include <string>

namespace layerport::log {

// What `setLoggerFinder` was given; the library that it is of tells how its classes are laid out.
void use_finder(void* finder) noexcept;

// Take the log of a library of TensorRT that is loaded, where no finder was given.
void use_library(void* handle) noexcept;

void write(trt::Severity severity, std::string const& message) noexcept;

inline void error(std::string const& message) noexcept { write(trt::Severity::error, message); }

// Which of TensorRT's layouts a library has: the version number that it reports.
enum class Layout { unknown, plain, versioned };
Layout layout_of_library(void* handle) noexcept;

} // namespace layerport::log
