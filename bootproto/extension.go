package bootproto

import (
	"errors"
	"time"
)

// eboot serves boot scripts, and those that it serves begin by putting a loader of our
// own in the place of the stock one (package loader). That loader takes the connection of
// the stock loader over and speaks an extension of the protocol on it: it opens a session
// for its bundle, fetches many files with one request, and reports how its boot goes. The
// requests, as Erlang terms:
//
//	{eboot_open, 1, Digest, Options}   {eboot_open, {ok, Info}} | {eboot_open, {error, Reason}}
//	{eboot_fetch, [Path]}              {eboot_file, Path, Content} for each Path, then {eboot_done, Count}
//	{eboot_report, [Item]}             no reply
//
// and what the slave is told unasked, at any time between two frames (restart.go):
//
//	{eboot_restart, Boot}
//
// When a plan was asked for, the reply to eboot_open is followed by what would answer an
// eboot_fetch of it. The stock requests go on to work, and mean the bundle that was opened.
//
// A slave with this loader notices at once when its connection ends, busy or idle, and
// goes on with another server. So it can be told that a server is alive: while it waits, it
// is sent an empty frame for each quarter second in which nothing else was (keepalive.go),
// from the first eboot_open on that makes sense.

// What a request of the extension may hold.
const (
	MaxFetch  = 2048 // paths in one request
	maxItems  = 64   // options, items of a report
	maxText   = 4096 // bytes of a text: PATH_MAX
	openLevel = 1    // the version of the extension
)

// What an Extended session says to Open. Each is told to the slave, which asks another
// server.
var (
	// ErrUnavailable: this server cannot serve that bundle, or not now.
	ErrUnavailable = errors.New("the bundle cannot be served here")
	// ErrDenied: this slave may not have that bundle.
	ErrDenied = errors.New("the slave may not have the bundle")
	// ErrBadOpen: the request makes no sense.
	ErrBadOpen = errors.New("malformed request to open a session")
)

// openReasons is the one translation of the errors of Open to the wire.
var openReasons = []struct {
	err    error
	reason string
}{{ErrUnavailable, "unavailable"}, {ErrDenied, "denied"}, {ErrBadOpen, "badarg"}}

// Extended is what a Session may also be: one whose slave may run our loader. To a Session
// that is not, the requests of the extension are unknown commands. The three methods are
// used by the goroutine of the connection, as those of Session are.
type Extended interface {
	Session
	// Open begins a session for a bundle, or another one. ErrUnavailable, ErrDenied and
	// ErrBadOpen are told to the slave, and what was opened before stays so; any other error
	// closes the connection.
	Open(Open) (Opened, error)
	// Fetch returns the content of a file of the opened bundle. The name is relative to the
	// bundle, otherwise as in Session. Pack asks for packed content where there is any. Errors
	// are those of Get. It is called after Open succeeded.
	Fetch(name []byte, pack bool) (Content, error)
	// Report is called when the slave tells of its boot, after Open succeeded.
	Report(Report)
}

// Open is a request to open a session. Texts were sent in at most 4 KiB each; what was not
// UTF-8 in them is replaced by U+FFFD. What the slave did not say is zero, Mode "interactive".
type Open struct {
	Digest string        // of the bundle, meant to be 64 hexadecimal digits; not checked
	Bundle string        // NAME@VERSION
	Script string        // path of the boot script in the bundle
	Mode   string        // "interactive" or "embedded"
	Root   string        // ROOTDIR of the slave
	Age    time.Duration // since the loader of the slave started
	Boot   uint64        // number of this boot, 48 bits, the same on each of its connections
	Tree   bool          // the slave wants the tree
	Plan   bool          // the slave wants the plan, and the files of it
	Pack   bool          // the slave found the link slow
	// CanRestart: the loader of the slave understands FileServer.Restart, if Opened.Control
	// keeps the connection open for it.
	CanRestart bool
}

// Opened is what a slave is told when its session is open.
type Opened struct {
	Bundle  string   // NAME@VERSION
	Cwd     string   // what get_cwd answers
	Roots   []string // what stands for the root of the bundle at the beginning of names
	Control bool     // the connection stays open when the slave is idle
	Tree    []byte   // an external term: the metadata of all files; not modified. nil: it is not told
	Plan    []string // files that this boot will need, relative to the bundle; at most MaxFetch are sent
	Frames  *Frames  // those of the files of Plan, plain; nil: each is fetched
}

// Report is what a slave says of its boot.
type Report struct {
	Phases   []Phase
	Switches int64 // how often the slave has changed servers
	Local    int64 // requests that were answered on the slave
}

// Phase is a point that a boot has reached: a name of init's progress, in UTF-8, or
// "started", the end of the boot. After it there may be "restarting": the slave was told to,
// and its applications are being stopped.
type Phase struct {
	Name string
	At   time.Duration // since the loader of the slave started
}
