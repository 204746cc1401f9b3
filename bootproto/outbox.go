package bootproto

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of an outbox. With the longest delay of 400 ms they hold the answers to
// ten thousand requests a second.
const (
	outboxQueue   = 256
	outboxDelayed = 4096
)

// An answer to an address that is not there stays in the buffer of the socket until the kernel
// gives up looking for the host, 3 s. Whoever forges such addresses could fill it, and nobody
// would be answered. So none waits for room, and when a quarter is full, each address gets
// no more than this until there is room again.
const (
	heldUpBurst  = 3
	heldUpRate   = 1 // a second
	heldUpPeriod = heldUpBurst * time.Second / heldUpRate
)

var errHeldUp = errors.New("too many answers to this address, while there are others that nobody takes")

// answer is a reply on its way.
type answer struct {
	due    time.Time
	to     netip.AddrPort
	source netip.Addr // leave from this address; zero: the socket's own
	length int
	bytes  [maxReply]byte
}

// outbox holds the answers of one socket until they are due. One goroutine, run,
// sends them all, with one timer.
type outbox struct {
	conn  *net.UDPConn
	queue chan answer
	sent  func(error) // told of each answer sent

	mu     sync.Mutex // guards what follows
	heldUp aging[netip.Addr, bucket]
}

func newOutbox(conn *net.UDPConn, sent func(error)) *outbox {
	return &outbox{
		conn: conn, queue: make(chan answer, outboxQueue), sent: sent,
		heldUp: aging[netip.Addr, bucket]{period: heldUpPeriod, limit: maxBuckets},
	}
}

// put sends an answer when it is due. When too many wait already it goes at
// once: a reply out of order is better than none.
func (o *outbox) put(now time.Time, a answer) {
	if a.due.After(now) {
		select {
		case o.queue <- a:
			return
		default:
		}
	}
	o.send(a)
}

// run sends what becomes due until ctx ends. What still waits then is dropped:
// a server that is going away must not be found.
func (o *outbox) run(ctx context.Context) {
	var waiting answers
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		for len(waiting) > 0 {
			wait := time.Until(waiting[0].due)
			if wait > 0 {
				timer.Reset(wait)
				break
			}
			o.send(heap.Pop(&waiting).(answer))
		}
		queue := o.queue
		if len(waiting) >= outboxDelayed {
			queue = nil
		}
		select {
		case a := <-queue:
			heap.Push(&waiting, a)
		case <-timer.C:
		case <-ctx.Done():
			return
		}
	}
}

func (o *outbox) send(a answer) { o.sent(o.write(a)) }

// write sends an answer now, or not at all: it waits for nothing.
func (o *outbox) write(a answer) error {
	var oob []byte
	if a.source.IsValid() {
		oob = sourceControl(a.source)
	}
	raw, err := o.conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		if crowded(int(fd)) && !o.fair(a.to.Addr()) {
			failed = errHeldUp
			return true
		}
		to := unix.SockaddrInet4{Addr: a.to.Addr().As4(), Port: int(a.to.Port())}
		if e := unix.Sendmsg(int(fd), a.bytes[:a.length], oob, &to, unix.MSG_DONTWAIT); e != nil {
			failed = fmt.Errorf("send to %s: %w", a.to, e)
		}
		return true
	})
	return errors.Join(err, failed)
}

// crowded reports whether a quarter of the buffer is taken by what is not sent yet.
func crowded(fd int) bool {
	waiting, err := unix.IoctlGetInt(fd, unix.TIOCOUTQ)
	if err != nil || waiting == 0 {
		return false // as good as always
	}
	size, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	return err == nil && waiting >= size/4
}

// fair counts an answer that is sent while the buffer is crowded.
func (o *outbox) fair(to netip.Addr) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	b, _ := o.heldUp.get(now, to)
	if !b.take(now, heldUpRate, heldUpBurst) {
		return false
	}
	o.heldUp.put(now, to, b)
	return true
}

// answers is a heap, the one due next at the top.
type answers []answer

func (h answers) Len() int           { return len(h) }
func (h answers) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h answers) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *answers) Push(x any)        { *h = append(*h, x.(answer)) }
func (h *answers) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}
