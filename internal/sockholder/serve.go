package sockholder

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// KeepFor is how long an idle connection is kept without a server: longer than the
// 60 s after which a stock slave closes it itself (erl_prim_loader, INET_IDLE_TIMEOUT).
const KeepFor = 75 * time.Second

// keeper is a holder process.
type keeper struct {
	keep    time.Duration
	poll    int   // epoll
	slots   []int // descriptors that the server has too; none: -1
	flags   flags
	watched map[int]time.Time // descriptors that nobody else has; until when
	order   []watch           // of them, first to end first; some may have ended
	orphan  bool              // the server is gone
}

type watch struct {
	fd    int
	until time.Time
}

// Serve is the holder process. It returns when the server is gone and nothing is left
// to hold, after keep at the latest (0: KeepFor). It wants to be started by a Holder: it
// uses the descriptors that are passed so.
func Serve(keep time.Duration) error {
	if keep == 0 {
		keep = KeepFor
	}
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	_ = os.WriteFile("/proc/self/comm", []byte("sockholder"), 0) // what ps shows, and pkill of the server passes over
	k, err := newKeeper(keep)
	if err != nil {
		return fmt.Errorf("hold connections: this is not started by hand: %w", err)
	}
	for !k.orphan || len(k.watched) > 0 {
		if err := k.wait(); err != nil {
			return fmt.Errorf("hold connections: %w", err)
		}
	}
	return nil
}

func newKeeper(keep time.Duration) (*keeper, error) {
	kind, err := unix.GetsockoptInt(controlFD, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, err
	}
	if kind != unix.SOCK_SEQPACKET {
		return nil, unix.ESOCKTNOSUPPORT
	}
	var memory unix.Stat_t
	if err := unix.Fstat(flagsFD, &memory); err != nil {
		return nil, err
	}
	k := &keeper{keep: keep, slots: make([]int, memory.Size/flagSize), watched: map[int]time.Time{}}
	for i := range k.slots {
		k.slots[i] = -1
	}
	if k.flags, err = mapFlags(flagsFD, len(k.slots)); err != nil {
		return nil, err
	}
	if k.poll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	return k, unix.EpollCtl(k.poll, unix.EPOLL_CTL_ADD, controlFD, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: controlFD})
}

// wait waits for the server, for a slave or for the end of a time, and acts on it.
func (k *keeper) wait() error {
	timeout := -1
	if next, ok := k.nextEnd(); ok {
		timeout = int(max(0, time.Until(next)).Milliseconds()) + 1
	}
	var events [64]unix.EpollEvent
	n, err := unix.EpollWait(k.poll, events[:], timeout)
	if err != nil && err != unix.EINTR {
		return err
	}
	for _, e := range events[:max(0, n)] {
		if e.Fd != controlFD {
			k.end(int(e.Fd)) // it sent something, or closed
			continue
		}
		if err := k.listen(); err != nil {
			return err
		}
	}
	for now := time.Now(); ; {
		next, ok := k.nextEnd()
		if !ok || next.After(now) {
			return nil
		}
		k.end(k.order[0].fd)
	}
}

// nextEnd is when the first of those that are watched has been kept long enough.
func (k *keeper) nextEnd() (time.Time, bool) {
	for len(k.order) > 0 {
		// The number of one that has ended may be another's by now.
		if first := k.order[0]; k.watched[first.fd] == first.until {
			return first.until, true
		}
		k.order = k.order[1:]
	}
	return time.Time{}, false
}

// listen takes all messages that the server has sent.
func (k *keeper) listen() error {
	var m message
	rights := make([]byte, unix.CmsgSpace(4))
	for {
		n, size, _, _, err := unix.Recvmsg(controlFD, m[:], rights, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return nil
		case err != nil && err != unix.ECONNRESET:
			return err
		case n == 0 || err != nil:
			k.bereave()
			return nil
		}
		what, slot := m.parse()
		if n != len(m) || slot >= len(k.slots) {
			return errors.New("the server sent nonsense")
		}
		switch what {
		case opHold:
			k.drop(slot)
			if fd, ok := passed(rights[:size]); ok { // not when there are too many
				k.slots[slot] = fd
			}
		case opDrop:
			k.drop(slot)
		case opRelease:
			k.watch(slot)
		}
	}
}

// passed is the descriptor that came with a message.
func passed(rights []byte) (int, bool) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(messages) != 1 {
		return 0, false
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return 0, false
	}
	return fds[0], true
}

func (k *keeper) drop(slot int) {
	if fd := k.slots[slot]; fd >= 0 {
		_ = unix.Close(fd)
		k.slots[slot] = -1
	}
}

// watch waits for the slave of a connection that nobody serves any more.
func (k *keeper) watch(slot int) {
	fd := k.slots[slot]
	if fd < 0 {
		return
	}
	k.slots[slot] = -1
	if err := unix.EpollCtl(k.poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP, Fd: int32(fd)}); err != nil {
		_ = unix.Close(fd)
		return
	}
	until := time.Now().Add(k.keep)
	k.watched[fd] = until
	k.order = append(k.order, watch{fd, until})
}

// end closes a connection that is watched. The kernel answers what was sent and not
// read by a reset.
func (k *keeper) end(fd int) {
	if _, ok := k.watched[fd]; !ok {
		return
	}
	delete(k.watched, fd)
	// A descriptor that the server still has would stay in the set.
	_ = unix.EpollCtl(k.poll, unix.EPOLL_CTL_DEL, fd, nil)
	_ = unix.Close(fd)
}

// bereave takes over what the server has left behind.
func (k *keeper) bereave() {
	k.orphan = true
	_ = unix.EpollCtl(k.poll, unix.EPOLL_CTL_DEL, controlFD, nil)
	_ = unix.Close(controlFD)
	for slot, fd := range k.slots {
		if fd >= 0 && k.flags[slot].Load() != 0 {
			// Half a reply may stand in the queue: it would only delay the end.
			_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			k.drop(slot)
			continue
		}
		k.watch(slot)
	}
}
