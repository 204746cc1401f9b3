package bootproto

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// ErrNoSession: no open connection of that boot can carry the word to restart.
var ErrNoSession = errors.New("the slave has no session here that is kept open")

// Restart tells a slave to restart its node, which then boots anew: init:restart/0. The slave
// must have a session that was opened with Open.CanRestart and Opened.Control, and boot is
// the Open.Boot of it: an older boot is not told. Restart waits for nobody; the slave is told at
// once, or after the frame that is being written to it. It takes notice with the phase
// "restarting" of a Report, at the end of its boot if it is in the middle of one, and closes the
// connection when its applications have stopped. nil promises nothing: the connection may end
// before.
func (s *FileServer) Restart(slave netip.Addr, boot uint64) error {
	told := false
	for _, c := range s.connections(nil) {
		// A connection that its slave has given up may still be open beside the one in use.
		if boot != 0 && c.slave.Addr() == slave.Unmap() && c.restartable.Load() == boot {
			told = true
			c.restart.Store(true)
			c.group.heart.rouse()
		}
	}
	if !told {
		return fmt.Errorf("restart %s: %w", slave, ErrNoSession)
	}
	return nil
}

// tellRestart writes {eboot_restart,Boot}, as keepAlive writes its empty frame. The caller
// has the turn.
func (c *connection) tellRestart() {
	frame := appendRestart(nil, c.restartable.Load())
	switch n := c.sendNow(frame); {
	case n <= 0: // later, if its own goroutine sees no error
	case n < len(frame):
		c.broken = true
		c.cut(errProgress)
	default:
		c.restart.Store(false)
	}
}

// sendNow writes what the kernel takes at once of a frame, and returns how much that was.
func (c *connection) sendNow(frame []byte) (n int) {
	_ = control(c.raw, func(fd int) (err error) {
		n, err = unix.SendmsgN(fd, frame, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		return err
	})
	return n
}
