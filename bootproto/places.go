package bootproto

import (
	"container/heap"
	"container/list"
	"net/netip"
	"time"
)

// places are the connections that may be open, and who has them. Not safe for concurrent
// use.
//
// A connection is silent while its slave owes the server something: the first byte, or the
// rest of a request. A slave that is alive is silent for milliseconds, one that is stuck
// until a timeout. When there is no room, one that was silent for a while gives its place
// up: of the same address, or of the address that has the most silent ones, as long as that
// has more connections than the newcomer's. So whoever holds many connections without
// using them keeps out nobody who holds fewer.
type places struct {
	perAddress, total int
	patience          time.Duration // how long a connection is silent before it can lose its place

	open    int
	holders map[netip.Addr]*holder
	crowd   crowd // all holders
}

// holder is an address that has connections.
type holder struct {
	addr   netip.Addr
	open   int
	silent list.List // of *place, the longest silent first
	index  int       // in crowd
}

// place is that of one connection. The zero value is none.
type place struct {
	connection *connection
	holder     *holder       // nil: it has lost its place, or left it
	silence    *list.Element // in holder.silent; nil: it is not silent
	since      time.Time     // when its silence began
}

func newPlaces(perAddress, total int, patience time.Duration) places {
	return places{perAddress: perAddress, total: total, patience: patience, holders: make(map[netip.Addr]*holder)}
}

// room reports whether one more connection of addr may come, and at whose expense: nil,
// there is room.
func (p *places) room(now time.Time, addr netip.Addr) (loser *holder, ok bool) {
	own, known := p.holders[addr]
	has := 0
	if known {
		has = own.open
	}
	if has < p.perAddress {
		if p.open < p.total {
			return nil, true
		}
		if len(p.crowd) > 0 {
			if most := p.crowd[0]; most.open > has+1 && p.stuck(now, most) {
				return most, true
			}
		}
	}
	if known && p.stuck(now, own) {
		return own, true
	}
	return nil, false
}

func (p *places) stuck(now time.Time, h *holder) bool {
	first := h.silent.Front()
	return first != nil && now.Sub(first.Value.(*place).since) >= p.patience
}

// enter gives a connection a place. displaced is the connection that has lost its own for
// that, if any; the caller closes it.
func (p *places) enter(now time.Time, c *connection) (displaced *connection, ok bool) {
	addr := c.slave.Addr()
	loser, ok := p.room(now, addr)
	if !ok {
		return nil, false
	}
	if loser != nil {
		longest := loser.silent.Front().Value.(*place)
		displaced = longest.connection
		p.leave(longest)
	}
	h, known := p.holders[addr]
	if !known {
		h = &holder{addr: addr}
		p.holders[addr] = h
		heap.Push(&p.crowd, h)
	}
	h.open++
	p.open++
	c.place = place{connection: c, holder: h}
	return displaced, true
}

// leave takes a connection's place away. Nothing happens when it has none.
func (p *places) leave(c *place) {
	h := c.holder
	if h == nil {
		return
	}
	p.speak(c)
	c.holder = nil
	h.open--
	p.open--
	if h.open == 0 {
		delete(p.holders, h.addr)
		heap.Remove(&p.crowd, h.index)
	}
}

// hush notes that a connection is silent. It goes on being silent when it was.
func (p *places) hush(now time.Time, c *place) {
	if c.holder == nil || c.silence != nil {
		return
	}
	c.since = now
	c.silence = c.holder.silent.PushBack(c)
	heap.Fix(&p.crowd, c.holder.index)
}

// speak notes that a connection is not silent.
func (p *places) speak(c *place) {
	if c.silence == nil {
		return
	}
	c.holder.silent.Remove(c.silence)
	c.silence = nil
	heap.Fix(&p.crowd, c.holder.index)
}

// crowd is a heap of holders, the one with the most silent connections at the top.
type crowd []*holder

func (h crowd) Len() int           { return len(h) }
func (h crowd) Less(i, j int) bool { return h[i].silent.Len() > h[j].silent.Len() }
func (h crowd) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *crowd) Push(x any) {
	x.(*holder).index = len(*h)
	*h = append(*h, x.(*holder))
}
func (h *crowd) Pop() any {
	last := (*h)[len(*h)-1]
	(*h)[len(*h)-1] = nil
	*h = (*h)[:len(*h)-1]
	return last
}
