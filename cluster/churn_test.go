package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"
)

// TestChurn lets random things happen to a group while commands are written:
// servers are stopped, moved, cut off, wiped and replaced, added and removed, and
// leadership goes round. In the end all members hold all that was acknowledged, in the
// same order, and there is one cluster. EBOOT_CHURN sets how many steps are made, of which
// each takes about 100 ms, and EBOOT_SEED which ones.
func TestChurn(t *testing.T) {
	t.Parallel()
	steps, seed := 25, uint64(time.Now().UnixNano())
	if n, err := strconv.Atoi(os.Getenv("EBOOT_CHURN")); err == nil {
		steps = n
	}
	if n, err := strconv.ParseUint(os.Getenv("EBOOT_SEED"), 10, 64); err == nil {
		seed = n
	}
	t.Logf("EBOOT_SEED=%d", seed)
	c := &churn{world: newWorld(t), random: rand.New(rand.NewPCG(seed, 0))}
	c.members = c.group(3, "a", "b", "c")
	startAll(t, c.members...)
	c.wantMembers(c.members, "a", "b", "c")
	writing, stopWriting := context.WithCancel(t.Context())
	written := make(chan struct{})
	go func() { defer close(written); c.write(writing) }()
	for range steps {
		c.step()
		c.wait(time.Duration(c.random.IntN(150)) * time.Millisecond)
	}
	stopWriting()
	<-written
	c.settle()
}

type churn struct {
	*world
	random       *rand.Rand
	members      []*node // that are meant to belong to the cluster
	acknowledged []string
	isolated     string
	born         int
}

func (c *churn) wait(d time.Duration) { <-time.After(d) }

func (c *churn) any() *node { return c.members[c.random.IntN(len(c.members))] }

func (c *churn) stopped() []*node {
	return slices.DeleteFunc(slices.Clone(c.members), func(n *node) bool { return n.server() != nil })
}

// leading is a server that thinks that it leads.
func (c *churn) leading() *node {
	for _, n := range c.members {
		if s := n.server(); s != nil && s.raft.State().String() == "Leader" {
			return n
		}
	}
	return nil
}

func (c *churn) step() {
	n := c.any()
	kind := c.random.IntN(10)
	switch {
	case kind < 2 && len(c.stopped()) < (len(c.members)-1)/2:
		c.t.Log("stop", n.id)
		n.stop()
	case kind < 5:
		for _, n := range c.stopped() {
			if c.random.IntN(2) == 0 && !raceDetector {
				n.move()
			}
			c.t.Log("start", n.id)
			n.start()
		}
	case kind == 5 && c.isolated == "":
		c.t.Log("isolate", n.id)
		c.isolated = n.id
		c.isolate(n.id)
	case kind <= 6 && c.isolated != "":
		c.t.Log("rejoin", c.isolated)
		c.rejoin(c.isolated)
		c.isolated = ""
	case kind == 7:
		if l := c.leading(); l != nil {
			c.t.Log("transfer from", l.id, l.server().Transfer(c.t.Context(), ""))
		}
	case kind == 8 && len(c.members) < 5 && c.isolated == "":
		c.born++
		fresh := c.node(fmt.Sprint("n", c.born), 0)
		c.t.Log("add", fresh.id)
		fresh.start()
		c.members = append(c.members, fresh)
	case kind == 9 && len(c.members) > 3 && c.isolated == "":
		c.remove(n)
	}
}

// remove takes a server out for good; when it is not certain that it is out, it stays.
func (c *churn) remove(n *node) {
	l := c.leading()
	if l == nil || l == n {
		return
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Second)
	defer cancel()
	c.mu.Lock()
	c.removed[n.id] = true
	c.mu.Unlock()
	err := l.server().Remove(ctx, n.id)
	c.t.Log("remove", n.id, err)
	if err != nil {
		c.mu.Lock()
		delete(c.removed, n.id)
		c.mu.Unlock()
		return
	}
	c.members = slices.DeleteFunc(c.members, func(m *node) bool { return m == n })
	n.stop()
	if c.random.IntN(2) == 0 { // another takes its place
		c.born++
		fresh := c.node(fmt.Sprint("n", c.born), 3)
		fresh.port = n.port
		c.t.Log("in its place", fresh.id)
		fresh.start()
		c.members = append(c.members, fresh)
	}
}

// write proposes commands to whoever leads.
func (c *churn) write(ctx context.Context) {
	for i := 0; ctx.Err() == nil; i++ {
		for _, s := range c.servers() {
			if s.raft.State().String() != "Leader" {
				continue
			}
			within, cancel := context.WithTimeout(ctx, time.Second)
			command := fmt.Sprint("command ", i)
			if _, err := s.Apply(within, []byte(command)); err == nil {
				c.acknowledged = append(c.acknowledged, command)
			}
			cancel()
		}
		c.wait(5 * time.Millisecond)
	}
}

func (c *churn) servers() []*server {
	c.mu.Lock()
	defer c.mu.Unlock()
	var running []*server
	for _, n := range c.nodes {
		if n.running != nil {
			running = append(running, n.running)
		}
	}
	return running
}

// settle heals everything and compares.
func (c *churn) settle() {
	if c.isolated != "" {
		c.rejoin(c.isolated)
	}
	startAll(c.t, c.stopped()...)
	var ids []string
	for _, n := range c.members {
		ids = append(ids, n.id)
	}
	c.wantMembers(c.members, ids...)
	c.world.write("the end", c.members...)
	first := c.members[0].server().list.all()
	for _, n := range c.members[1:] {
		if got := n.server().list.all(); !slices.Equal(got, first) {
			c.t.Fatalf("%s and %s differ: %d and %d commands", n.id, c.members[0].id, len(got), len(first))
		}
	}
	at := 0
	for _, command := range c.acknowledged {
		i := slices.Index(first[at:], command)
		if i < 0 {
			c.t.Fatalf("%s was acknowledged and is lost", command)
		}
		at += i + 1
	}
	c.t.Logf("%d commands acknowledged, %d servers in all, members %v", len(c.acknowledged), c.born+3, ids)
}
