package bootproto

import (
	"io"
	"net/netip"
)

// Host decides who may connect, and opens a Session for each connection.
type Host interface {
	// Admit is asked first, from the goroutine that accepts, so it must not block. After
	// an error the connection is closed at once and has cost no slave its place; the
	// text is the reason.
	Admit(slave netip.Addr) error
	// Connect is asked when a connection has a place, before a byte is read, from
	// the goroutine of that connection. erts is what the listener was served with.
	// After an error the connection is closed at once; its text is the reason.
	Connect(slave netip.AddrPort, erts string) (Session, error)
}

// Session is one connection's view of the files. It is used by one goroutine,
// except for Allowed.
//
// An error of Get, List or Stat with a syscall.Errno in its chain is answered as
// the POSIX atom, {error,enoent}; for the slave that is final. Any other error
// means "I cannot serve now": the connection is closed without a reply, and the
// slave looks for another server and asks again.
//
// Names are UTF-8, as the slave wrote them, without a zero byte. They may be
// empty or relative and are at most 128 KiB long. They are valid only during
// the call.
type Session interface {
	// Allowed is asked again when the whitelist changed, from another goroutine,
	// never after Close. After an error the connection is closed.
	Allowed() error
	// Get returns the content of a file.
	Get(name []byte) (Content, error)
	// List returns the names in a directory. Names that are not UTF-8 are not sent.
	List(name []byte) ([]string, error)
	// Stat describes a file. Follow says whether to describe what a symbolic link
	// points to, or the link.
	Stat(name []byte, follow bool) (FileInfo, error)
	// WorkingDirectory is the answer to get_cwd.
	WorkingDirectory() string
	// Sent tells how many bytes the reply to the latest request took, its frame
	// header included, and all frames where there are several. It is called after the
	// reply was handed to the kernel, and not when that failed.
	Sent(n int)
	// Close is called once, when the connection has ended and after everything
	// else. The reason is nil when the slave closed it between two requests.
	Close(reason error)
}

// Content is the content of a file: Data when Reader is nil, else what Reader
// yields. Data is not modified. Reader must yield exactly Size bytes and is
// closed; an *os.File is sent by the kernel without being copied.
type Content struct {
	Data   []byte
	Reader io.ReadCloser
	Size   int64
	Packed bool // it is an external term whose value is the content; of Extended.Fetch only
}
