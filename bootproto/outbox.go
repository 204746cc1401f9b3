package bootproto

import (
	"container/heap"
	"context"
	"net"
	"net/netip"
	"time"
)

// Bounds of an outbox. With the longest delay of 400 ms they hold the answers to
// ten thousand requests a second.
const (
	outboxQueue   = 256
	outboxDelayed = 4096
)

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
}

func newOutbox(conn *net.UDPConn, sent func(error)) *outbox {
	return &outbox{conn: conn, queue: make(chan answer, outboxQueue), sent: sent}
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

func (o *outbox) send(a answer) {
	var oob []byte
	if a.source.IsValid() {
		oob = sourceControl(a.source)
	}
	_, _, err := o.conn.WriteMsgUDPAddrPort(a.bytes[:a.length], oob, a.to)
	o.sent(err)
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
