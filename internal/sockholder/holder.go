package sockholder

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

// Options are what a Holder is made of.
type Options struct {
	// Command starts a holder process: a program that calls Serve, its name and its
	// arguments.
	Program string
	Args    []string
	Slots   int // how many connections are held at most
	Logger  hclog.Logger
}

// How a holder process is treated.
const (
	patience   = 5 * time.Second // how long it may take nothing before it is killed
	firstPause = time.Second     // before it is started again
	longPause  = time.Minute     // at most, after several failures
)

// Holder is what the server has of its holder process. It holds nothing while Run
// does not run.
type Holder struct {
	options Options
	memory  *os.File // the memfd of the flags
	flags   flags
	wake    chan struct{} // the queue is not empty

	mu      sync.Mutex // guards what follows, and the slots
	slots   []*Held    // nil: free
	free    []int
	queue   []*Held
	running bool // a holder process is there
}

// Held is one connection that has a slot. Each is used by the goroutine of that
// connection, and ends with Drop or Release.
type Held struct {
	holder *Holder
	slot   int
	conn   syscall.RawConn

	queued bool
	sent   bool // the process that runs has the socket
	end    op   // opDrop or opRelease, once called
}

// New makes a Holder. It starts nothing; Close gives its memory back.
func New(o Options) (*Holder, error) {
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	fd, err := unix.MemfdCreate("eboot-sockholder", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory for flags of connections: %w", err)
	}
	memory := os.NewFile(uintptr(fd), "flags")
	if err := unix.Ftruncate(fd, int64(o.Slots*flagSize)); err != nil {
		return nil, errors.Join(fmt.Errorf("memory for flags of connections: %w", err), memory.Close())
	}
	mapped, err := mapFlags(fd, o.Slots)
	if err != nil {
		return nil, errors.Join(err, memory.Close())
	}
	h := &Holder{options: o, memory: memory, flags: mapped, wake: make(chan struct{}, 1), slots: make([]*Held, o.Slots), free: make([]int, o.Slots)}
	for i := range h.free {
		h.free[i] = o.Slots - 1 - i
	}
	return h, nil
}

// Close gives the memory back. Run must have returned, and nothing may be held any
// more.
func (h *Holder) Close() error {
	h.flags.unmap()
	return h.memory.Close()
}

// Hold has the holder process keep a duplicate of conn. nil: there is no slot left,
// and it is not kept. A connection that came while no process runs is kept from the
// next start on.
func (h *Holder) Hold(conn syscall.Conn) *Held {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.free) == 0 {
		return nil
	}
	slot := h.free[len(h.free)-1]
	h.free = h.free[:len(h.free)-1]
	d := &Held{holder: h, slot: slot, conn: raw}
	h.slots[slot] = d
	h.flags[slot].Store(0)
	h.enqueue(d)
	return d
}

// Busy says whether a request is outstanding: from the first byte that was read of
// it until its reply is in the hands of the kernel.
func (d *Held) Busy(busy bool) {
	flag := uint32(0)
	if busy {
		flag = 1
	}
	d.holder.flags[d.slot].Store(flag)
}

// Drop says that the connection needs no holder: it has ended, and the caller has called
// shutdown(2), or its slave notices by itself when it ends.
func (d *Held) Drop() {
	d.holder.mu.Lock()
	defer d.holder.mu.Unlock()
	d.end = opDrop
	d.holder.enqueue(d)
}

// Release leaves the connection to the holder process, which ends it when the slave
// sends something. The caller closes its own descriptor, without shutdown(2), and
// says no more. false: the process does not have it, and nothing has changed.
func (d *Held) Release() bool {
	d.holder.mu.Lock()
	defer d.holder.mu.Unlock()
	if !d.holder.running || !d.sent {
		return false
	}
	d.end = opRelease
	d.holder.enqueue(d)
	return true
}

func (h *Holder) enqueue(d *Held) {
	if d.queued {
		return
	}
	d.queued = true
	h.queue = append(h.queue, d)
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// Run keeps a holder process running until ctx ends. The process then takes over what
// is held, as it does when the server dies.
func (h *Holder) Run(ctx context.Context) error {
	pause := firstPause
	for ctx.Err() == nil {
		began := time.Now()
		err := h.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > longPause {
			pause = firstPause
		}
		h.options.Logger.Warn("the process that keeps connections of slaves ended; a crash of this server would make them wait", "error", err, "again_in", pause)
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		pause = min(2*pause, longPause)
	}
	return nil
}

// session runs one holder process until it ends or ctx does.
func (h *Holder) session(ctx context.Context) error {
	process, control, err := h.start()
	if err != nil {
		return fmt.Errorf("start the holder of connections: %w", err)
	}
	living, end := context.WithCancelCause(ctx)
	var reading sync.WaitGroup
	reading.Go(func() {
		_, err := control.Read(make([]byte, 1)) // it never sends: this is its end, or ours
		end(fmt.Errorf("it has ended: %w", err))
	})
	h.begin()
	err = h.send(living, control)
	h.mu.Lock()
	h.running = false
	h.mu.Unlock()
	end(nil)
	_ = control.Close()
	reading.Wait()
	if ctx.Err() != nil {
		return process.Release() // it goes on without us
	}
	_ = process.Kill() // it may have ended
	state, waitErr := process.Wait()
	if waitErr == nil {
		err = fmt.Errorf("%w (%s)", err, state)
	}
	return err
}

func (h *Holder) start() (*os.Process, *net.UnixConn, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	own, theirs := os.NewFile(uintptr(pair[0]), "holder"), os.NewFile(uintptr(pair[1]), "server")
	defer own.Close()    //nolint:errcheck // a duplicate is used
	defer theirs.Close() //nolint:errcheck // the process has it
	conn, err := net.FileConn(own)
	if err != nil {
		return nil, nil, err
	}
	control := conn.(*net.UnixConn)
	// What this process itself inherited, a lock of the shell that started it perhaps,
	// would stay open with the holder.
	_ = unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC) // older kernels lack it
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, errors.Join(err, control.Close())
	}
	defer null.Close() //nolint:errcheck // the process has it
	// Nothing of the standard streams either: who reads them waits for their end. And
	// nothing of the environment: no keys, and no word to the service manager.
	process, err := os.StartProcess(h.options.Program, h.options.Args, &os.ProcAttr{
		Dir: "/", Env: []string{"GOMAXPROCS=1", "GOGC=20"},
		Files: []*os.File{null, null, null, theirs, h.memory},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, nil, errors.Join(err, control.Close())
	}
	return process, control, nil
}

// begin queues every connection for a new process, which has none.
func (h *Holder) begin() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running = true
	for _, d := range h.slots {
		if d != nil {
			d.sent = false
			h.enqueue(d)
		}
	}
}

// send tells the process what is queued until ctx ends.
func (h *Holder) send(ctx context.Context, control *net.UnixConn) error {
	raw, err := control.SyscallConn()
	if err != nil {
		return err
	}
	for {
		d, what := h.next()
		switch {
		case d == nil:
			select {
			case <-h.wake:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			continue
		case what == 0:
			continue
		}
		if err := control.SetWriteDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		passed, err := d.tell(raw, what)
		if err != nil {
			return err
		}
		h.told(d, what, passed)
	}
}

// next takes an entry from the queue, and what is to be said of it; 0: nothing.
func (h *Holder) next() (*Held, op) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.queue) == 0 {
		h.queue = nil
		return nil, 0
	}
	d := h.queue[0]
	h.queue = h.queue[1:]
	d.queued = false
	switch {
	case d.end == 0 && !d.sent:
		return d, opHold
	case d.end != 0 && d.sent:
		return d, d.end
	case d.end != 0:
		h.release(d)
	}
	return d, 0
}

// told notes that the process has been told.
func (h *Holder) told(d *Held, what op, passed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if what == opHold {
		d.sent = passed
		return
	}
	h.release(d)
}

// release gives the slot of an ended connection back.
func (h *Holder) release(d *Held) {
	h.slots[d.slot] = nil
	h.free = append(h.free, d.slot)
}

// tell sends one message. false: the connection was closed before its descriptor could
// be passed.
func (d *Held) tell(control syscall.RawConn, what op) (bool, error) {
	m := newMessage(what, d.slot)
	var sendErr, connErr error
	err := control.Write(func(fd uintptr) bool {
		if what != opHold {
			sendErr = unix.Sendmsg(int(fd), m[:], nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			return sendErr != unix.EAGAIN
		}
		// The connection may be closed meanwhile, which waits for this function: it must
		// not wait for the holder.
		connErr = d.conn.Control(func(socket uintptr) {
			sendErr = unix.Sendmsg(int(fd), m[:], unix.UnixRights(int(socket)), nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		})
		return connErr != nil || sendErr != unix.EAGAIN
	})
	switch {
	case err != nil: // it took nothing for too long, or has ended
		return false, err
	case connErr != nil:
		return false, nil
	case sendErr == unix.ETOOMANYREFS: // more descriptors are on their way than a user may have
		return false, nil
	}
	return true, sendErr
}
