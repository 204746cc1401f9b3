package bootproto

import (
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// extended is what a connection has beside the stock protocol.
type extended struct {
	files   Extended        // the session; nil: it knows the stock requests only
	raw     syscall.RawConn // the socket, once a session was asked for; nil: it is none
	slow    bool            // packed content is worth its price
	opened  atomic.Bool     // a session was opened: the slave runs our loader
	control atomic.Bool     // it stays open while the slave is idle
	stirred atomic.Int64    // when a request began or something was written: see heartbeat

	restartable atomic.Uint64 // the boot that can be told to restart; 0: none
	restart     atomic.Bool   // it is to be told
}

const (
	// slowRoundTrip is from when on a link counts as slow.
	slowRoundTrip = 3 * time.Millisecond
	// forever is the idle timeout of a connection that is to stay.
	forever = 10 * 365 * 24 * time.Hour
)

// answerExtended handles one request of the extension and returns the length of the
// reply.
func (c *connection) answerExtended(what string, frame []byte) (int64, error) {
	switch what {
	case atomOpen:
		return c.open(frame)
	case atomFetch:
		wanted, ok := parseFetch(frame)
		if !ok || !c.opened.Load() {
			c.server.count.malformed.Add(1)
			return 0, errFetch
		}
		return c.stream(wanted.all)
	default:
		report, ok := parseReport(frame)
		if !ok || !c.opened.Load() {
			c.server.count.malformed.Add(1)
			return 0, nil
		}
		c.files.Report(report)
		return 0, nil
	}
}

// open answers a request to open a session.
func (c *connection) open(frame []byte) (int64, error) {
	wanted, ok := parseOpen(frame)
	if !ok {
		c.server.count.malformed.Add(1)
		return c.refuseOpen(ErrBadOpen)
	}
	c.beat() // the session may have to load the tree
	o, err := c.files.Open(wanted)
	if err != nil {
		return c.refuseOpen(err)
	}
	o.Plan = o.Plan[:min(len(o.Plan), MaxFetch)]
	sent, err := c.sendOpened(wanted, o)
	if err != nil {
		return sent, err
	}
	c.server.count.opens.Add(1)
	c.adopt(wanted, o.Control)
	if !wanted.Plan {
		return sent, nil
	}
	n, files, err := c.sendFrames(o.Frames, len(o.Plan))
	if sent += n; err != nil {
		return sent, err
	}
	n, err = c.streamRest(files, func(yield func([]byte) bool) {
		for _, path := range o.Plan[files:] {
			c.name = append(c.name[:0], path...)
			if !yield(c.name) {
				return
			}
		}
	})
	return sent + n, err
}

// refuseOpen tells the slave why, or ends the connection when it is not to know.
func (c *connection) refuseOpen(err error) (int64, error) {
	for _, known := range openReasons {
		if errors.Is(err, known.err) {
			c.server.count.errors.Add(1)
			c.out = appendOpenError(c.out[:0], known.reason)
			return c.send(c.out, nil)
		}
	}
	return 0, fmt.Errorf("open a session: %w", err)
}

// sendOpened writes the reply, the tree without copying it.
func (c *connection) sendOpened(wanted Open, o Opened) (int64, error) {
	tree := o.Tree
	if !wanted.Tree {
		tree = nil
	}
	head := appendOpened(c.out[:0], wanted, o)
	split := len(head)
	c.out = endFrame(appendPlan(head, wanted, o), int64(len(tree)))
	if err := c.takeTurn(); err != nil {
		return 0, err
	}
	defer c.turn.Unlock()
	sent, err := c.write(c.out[:split], tree)
	if err != nil {
		return sent, err
	}
	n, err := c.write(c.out[split:], nil)
	return sent + n, err
}

// adopt makes the connection one of our loader.
func (c *connection) adopt(wanted Open, control bool) {
	c.slow = c.slow || wanted.Pack || c.roundTrip() >= slowRoundTrip // or found so by flush
	if control {
		c.boundSilence()
	}
	c.control.Store(control)
	restartable := uint64(0)
	if control && wanted.CanRestart && c.raw != nil {
		restartable = wanted.Boot
	}
	c.restartable.Store(restartable)
	c.stir(time.Now())
	if c.opened.Load() {
		return
	}
	if c.held != nil {
		c.held.Drop()
	}
	c.opened.Store(true)
	c.deadline = time.Time{} // the next one is set, and so looks whether we drain
}

// roundTrip is the shortest that the kernel has seen lately: the others hold the delays
// of a busy slave, too. 0: it knows none.
func (c *connection) roundTrip() time.Duration {
	var shortest time.Duration
	if c.raw == nil {
		return 0
	}
	_ = control(c.raw, func(fd int) error {
		const unknown = 1<<32 - 1
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil && info.Min_rtt != unknown {
			shortest = time.Duration(info.Min_rtt) * time.Microsecond
		}
		return err
	})
	return shortest
}

// boundSilence lets the kernel end a connection that has no idle timeout when its slave
// does not acknowledge what is written, such as a keep-alive, for as long as a reply may
// stand still.
func (c *connection) boundSilence() {
	if c.raw == nil {
		return
	}
	_ = control(c.raw, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(c.server.options.ProgressTimeout.Milliseconds()))
	})
}

func (c *connection) idleLimit() time.Duration {
	if c.control.Load() {
		return forever
	}
	return c.server.options.IdleTimeout
}
