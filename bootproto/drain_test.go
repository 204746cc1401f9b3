package bootproto

import (
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// slowHost takes its time to let a slave in.
type slowHost struct {
	*tree
	admit chan struct{}
}

func (h *slowHost) Connect(slave netip.AddrPort, erts string) (Session, error) {
	<-h.admit
	return h.tree.Connect(slave, erts)
}

// TestDrainEndsWhatWasNotAdmitted: a connection that the Host lets in when the
// time to drain is over ends at once, however busy its slave is.
func TestDrainEndsWhatWasNotAdmitted(t *testing.T) {
	host := &slowHost{tree: newTree()}
	inBubble(t, FileServerOptions{Host: host}, func(t *testing.T, _ *FileServer, ln *pipes, stop func(), served <-chan struct{}) {
		host.admit = make(chan struct{})
		conn := ln.dial()
		defer conn.Close()
		synctest.Wait()
		stop()
		pass(DefaultDrain + time.Second)
		select {
		case <-served:
			t.Error("the server has ended before its connection")
		default:
		}
		admitted := time.Now()
		close(host.admit)
		if took := untilClosed(t, conn); took != 0 {
			t.Errorf("closed %v after it was let in", took)
		}
		<-served
		if ended := host.ended(); len(ended) != 1 || !errors.Is(ended[0], errDraining) || time.Since(admitted) != 0 {
			t.Errorf("ended with %v, %v after it was let in", ended, time.Since(admitted))
		}
	})
}

// overtaken is a connection that the server begins to drain while the first read
// deadline is being set: drain sets its own deadline before.
type overtaken struct {
	net.Conn
	stop    func()
	calls   atomic.Int32
	drained chan struct{}
}

func (c *overtaken) SetReadDeadline(t time.Time) error {
	switch c.calls.Add(1) {
	case 1:
		c.stop()
		<-c.drained
	case 2:
		defer close(c.drained)
	}
	return c.Conn.SetReadDeadline(t)
}

// TestDrainOvertakesADeadline: a deadline that was chosen before the drain began and
// is set afterwards does not keep a silent connection.
func TestDrainOvertakesADeadline(t *testing.T) {
	files := newTree()
	inBubble(t, FileServerOptions{Host: files}, func(t *testing.T, _ *FileServer, ln *pipes, stop func(), served <-chan struct{}) {
		client, server := net.Pipe()
		defer client.Close()
		began := time.Now()
		ln.accept <- pipeConn{&overtaken{Conn: server, stop: stop, drained: make(chan struct{})}}
		if untilClosed(t, client); time.Since(began) != DefaultQuiet {
			t.Errorf("a silent connection was closed after %v, want %v", time.Since(began), DefaultQuiet)
		}
		<-served
		if ended := files.ended(); len(ended) != 1 || !errors.Is(ended[0], errDraining) {
			t.Errorf("ended with %v", ended)
		}
	})
}
