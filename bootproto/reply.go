package bootproto

import (
	"encoding/binary"
	"math"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"eboot/bootproto/etf"

	"golang.org/x/sys/unix"
)

// FileType is the type of a file, as a slave sees it.
type FileType byte

// The types of file.
const (
	Regular FileType = iota + 1
	Directory
	Symlink
)

// FileInfo is what a slave may know of a file.
type FileInfo struct {
	Size    int64
	Type    FileType
	Exec    bool  // of a regular file
	ModTime int64 // Unix seconds
}

// headerSize is the length of a frame's header: {packet,4}.
const headerSize = 4

// maxContent is the size of the largest content that fits into a frame:
// {get,{ok,Content}} takes 19 bytes beside it.
const maxContent = math.MaxUint32 - 19

// beginFrame leaves room for the header and writes the version of the term.
func beginFrame(dst []byte) []byte {
	return append(dst, 0, 0, 0, 0, etf.Version)
}

// endFrame fills the header in. extra bytes of the frame are not in it yet.
func endFrame(frame []byte, extra int64) []byte {
	binary.BigEndian.PutUint32(frame, uint32(int64(len(frame)-headerSize)+extra))
	return frame
}

// beginOK writes {Operation,{ok, up to the result.
func beginOK(dst []byte, op operation) []byte {
	dst = etf.AppendTuple(beginFrame(dst), 2)
	dst = etf.AppendAtom(dst, operationNames[op])
	dst = etf.AppendTuple(dst, 2)
	return etf.AppendAtom(dst, "ok")
}

// appendContentHeader writes {get,{ok,Binary}} without the size bytes of the
// binary, which end it.
func appendContentHeader(dst []byte, size int64) []byte {
	return endFrame(etf.AppendBinary(beginOK(dst, opGet), size), size)
}

// appendNames writes {list_dir,{ok,[Name]}}. A name that is not UTF-8 is left
// out, as prim_file:list_dir/1 does: a slave could not ask for it.
func appendNames(dst []byte, names []string) []byte {
	dst = beginOK(dst, opListDir)
	n := 0
	for _, name := range names {
		if utf8.ValidString(name) {
			n++
		}
	}
	if n > 0 {
		dst = etf.AppendList(dst, n)
		for _, name := range names {
			if utf8.ValidString(name) {
				dst = etf.AppendName(dst, name)
			}
		}
	}
	return endFrame(etf.AppendNil(dst), 0)
}

// appendCwd writes {get_cwd,{ok,Name}}.
func appendCwd(dst []byte, name string) []byte {
	return endFrame(etf.AppendName(beginOK(dst, opGetCwd), name), 0)
}

// Modes of the three types of file, and of a program.
const (
	modeRegular   = 0o100644
	modeExec      = 0o100755
	modeDirectory = 0o040755
	modeSymlink   = 0o120777
)

// appendInfo writes {Operation,{ok,#file_info{}}}. The record has 14 elements
// (kernel, file.hrl). A bundle has no owner, no device and no access times: they
// are 0, and all times are the one of modification, in UTC.
func appendInfo(dst []byte, op operation, info FileInfo) []byte {
	kind, mode := "regular", int64(modeRegular)
	switch {
	case info.Type == Directory:
		kind, mode = "directory", modeDirectory
	case info.Type == Symlink:
		kind, mode = "symlink", modeSymlink
	case info.Exec:
		mode = modeExec
	}
	dst = etf.AppendTuple(beginOK(dst, op), 14)
	dst = etf.AppendAtom(dst, "file_info")
	dst = etf.AppendInteger(dst, info.Size)
	dst = etf.AppendAtom(dst, kind)
	dst = etf.AppendAtom(dst, "read")
	modified := time.Unix(info.ModTime, 0).UTC()
	for range 3 { // atime, mtime, ctime
		dst = appendTime(dst, modified)
	}
	dst = etf.AppendInteger(dst, mode)
	dst = etf.AppendInteger(dst, 1) // links
	for range 5 {                   // major_device, minor_device, inode, uid, gid
		dst = etf.AppendInteger(dst, 0)
	}
	return endFrame(dst, 0)
}

// appendTime writes {{Year,Month,Day},{Hour,Minute,Second}}.
func appendTime(dst []byte, t time.Time) []byte {
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	dst = etf.AppendTuple(etf.AppendTuple(dst, 2), 3)
	dst = etf.AppendInteger(dst, int64(year))
	dst = etf.AppendInteger(dst, int64(month))
	dst = etf.AppendInteger(dst, int64(day))
	dst = etf.AppendTuple(dst, 3)
	dst = etf.AppendInteger(dst, int64(hour))
	dst = etf.AppendInteger(dst, int64(minute))
	return etf.AppendInteger(dst, int64(second))
}

// appendError writes {Operation,{error,Reason}}, or {error,Reason} for what is no
// operation.
func appendError(dst []byte, op operation, reason string) []byte {
	dst = beginFrame(dst)
	if op < operations {
		dst = etf.AppendTuple(dst, 2)
		dst = etf.AppendAtom(dst, operationNames[op])
	}
	dst = etf.AppendTuple(dst, 2)
	dst = etf.AppendAtom(dst, "error")
	return endFrame(etf.AppendAtom(dst, reason), 0)
}

// posixAtom is the one translation of a Session's errors to the wire: the atom
// that OTP has for an errno (erts, erl_posix_str.c), which is its name in small
// letters.
func posixAtom(errno syscall.Errno) string {
	if name := unix.ErrnoName(errno); name != "" {
		return strings.ToLower(name)
	}
	return "unknown"
}

// errnos is above every errno of Linux.
const errnos = 134

// errorReplies are the frames of all error replies. They are never modified.
type errorReplies struct {
	errno       [operations][errnos][]byte
	fault       [operations][faults][]byte
	unknown     []byte
	undecodable []byte
}

func newErrorReplies() *errorReplies {
	r := &errorReplies{
		unknown: appendError(nil, opUnknown, "unknown_command"),
		// erl_boot_server adds the stack trace of its binary_to_term.
		undecodable: appendError(nil, opUndecodable, faultNames[faultBadarg]),
	}
	for op := range operations {
		for errno := range r.errno[op] {
			r.errno[op][errno] = appendError(nil, op, posixAtom(syscall.Errno(errno)))
		}
		for f := range r.fault[op] {
			r.fault[op][f] = appendError(nil, op, faultNames[f])
		}
	}
	return r
}

func (r *errorReplies) posix(op operation, errno syscall.Errno) []byte {
	if errno >= errnos {
		errno = 0 // "unknown"
	}
	return r.errno[op][errno]
}
