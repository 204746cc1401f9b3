package test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"eboot/bootproto/etf"
)

// floodEnvironment makes this program a generator of a flood instead of a test: a process
// of its own, which a test starts on a host of its network and kills. It ends by itself, too.
const floodEnvironment = "EBOOT_TEST_FLOOD"

const (
	floodLasts   = 5 * time.Minute
	floodSockets = 4
	floodBatch   = 64
	floodTick    = time.Millisecond
)

// flood is what a generator does.
type flood struct {
	Discovery   string // ADDRESS:PORT for datagrams; half are junk, half are requests of the version
	ERTS        string
	Rate        int    // datagrams a second
	Files       string // ADDRESS:PORT for connections
	Connections int    // how many it tries to hold
	Attempts    int    // how many it opens a second
	Big         string // a file that takes long to read
	CPUs        []int  // where it runs
}

// floodReport is a line that a generator prints each second.
type floodReport struct {
	At        float64 // seconds since it began
	Datagrams int64   // sent so far
	Rate      int64   // of the last second
	Open      int64   // connections now
	Opened    int64   // so far
}

// isFlood runs the generator, if this process is to be one.
func isFlood() bool {
	text := os.Getenv(floodEnvironment)
	if text == "" {
		return false
	}
	var f flood
	err := json.Unmarshal([]byte(text), &f)
	if err == nil {
		err = f.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "flood:", err)
		os.Exit(1)
	}
	return true
}

func (f flood) run() error {
	if err := pinSelf(f.CPUs); err != nil {
		return err
	}
	var datagrams, open, opened atomic.Int64
	failed := make(chan error, 1)
	fail := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	if f.Rate > 0 {
		go func() { fail(f.send(&datagrams)) }()
	}
	allowed := make(chan struct{})
	if f.Connections > 0 {
		go pace(allowed, f.Attempts)
	}
	for i := range f.Connections {
		go func() {
			for range allowed {
				f.hold(i, &open, &opened)
			}
		}()
	}
	end := time.NewTimer(floodLasts)
	began := time.Now()
	second := time.NewTicker(time.Second)
	last := int64(0)
	for {
		select {
		case <-end.C:
			return nil
		case err := <-failed:
			return err
		case <-second.C:
		}
		sent := datagrams.Load()
		line, err := json.Marshal(floodReport{At: time.Since(began).Seconds(), Datagrams: sent, Rate: sent - last, Open: open.Load(), Opened: opened.Load()})
		if err != nil {
			return err
		}
		last = sent
		fmt.Println(string(line))
	}
}

// pace sends n times a second.
func pace(allowed chan<- struct{}, n int) {
	tick := time.NewTicker(time.Second / time.Duration(n))
	for range tick.C {
		allowed <- struct{}{}
	}
}

// send sends datagrams at the rate, many with one system call.
func (f flood) send(count *atomic.Int64) error {
	var sockets []*ipv4.PacketConn
	for range floodSockets {
		conn, err := net.Dial("udp4", f.Discovery)
		if err != nil {
			return err
		}
		sockets = append(sockets, ipv4.NewPacketConn(conn.(*net.UDPConn)))
	}
	random := rand.New(rand.NewPCG(1, 2))
	var batches [16][]ipv4.Message
	for i := range batches {
		for j := range floodBatch {
			datagram := []byte("EBOOTQ" + f.ERTS)
			if j%2 == 0 {
				datagram = make([]byte, 1+random.IntN(64))
				for k := range datagram {
					datagram[k] = byte(random.Uint32())
				}
			}
			batches[i] = append(batches[i], ipv4.Message{Buffers: [][]byte{datagram}})
		}
	}
	began := time.Now()
	tick := time.NewTicker(floodTick)
	for round := 0; ; {
		due := int64(time.Since(began).Seconds() * float64(f.Rate))
		if count.Load() >= due {
			<-tick.C
			continue
		}
		n, err := sockets[round%floodSockets].WriteBatch(batches[round%len(batches)], 0)
		// A server that is not there yet answers by ICMP, and a queue may be full.
		if err != nil && !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ENOBUFS) {
			return err
		}
		count.Add(int64(max(n, 0)))
		round++
	}
}

// hold opens one connection of three kinds and returns when the server has closed it.
func (f flood) hold(i int, open, opened *atomic.Int64) {
	dialer := net.Dialer{Timeout: 5 * time.Second, Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096) }); e != nil {
			return e
		}
		return err
	}}
	conn, err := dialer.Dial("tcp4", f.Files)
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	open.Add(1)
	opened.Add(1)
	defer open.Add(-1)
	request := etf.AppendName(etf.AppendAtom(etf.AppendTuple([]byte{etf.Version}, 2), "get"), f.Big)
	frame := append(binary.BigEndian.AppendUint32(nil, uint32(len(request))), request...)
	one := make([]byte, 1)
	switch i % 3 {
	case 0: // says nothing
	case 1: // stops in the middle of a frame
		_, _ = conn.Write(frame[:len(frame)/2])
	case 2: // reads a byte a second of a large reply
		_, _ = conn.Write(frame)
		for err == nil {
			<-time.After(time.Second)
			_, err = conn.Read(one)
		}
	}
	_, _ = io.Copy(io.Discard, conn)
}

// shareCPUs divides the cores that this process may run on: the last is the generator's.
func shareCPUs() (others, generator []int, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, nil, err
	}
	var all []int
	for cpu := range len(set) * strconv.IntSize {
		if set.IsSet(cpu) {
			all = append(all, cpu)
		}
	}
	if len(all) < 2 {
		return nil, nil, errors.New("the generator needs a core of its own, and there is one in all")
	}
	return all[:len(all)-1], all[len(all)-1:], nil
}

// pinSelf has every thread of this process run on some cores, and so all that it makes
// and all processes that these start.
func pinSelf(cpus []int) error {
	var set unix.CPUSet
	for _, cpu := range cpus {
		set.Set(cpu)
	}
	for range 2 { // the second time for a thread that one of the first made meanwhile
		threads, err := filepath.Glob("/proc/self/task/*")
		if err != nil {
			return err
		}
		for _, thread := range threads {
			id, err := strconv.Atoi(filepath.Base(thread))
			if err != nil {
				return err
			}
			if err := unix.SchedSetaffinity(id, &set); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("run on cores %v: %w", cpus, err)
			}
		}
	}
	return nil
}

func hostPort(address string, port uint16) string {
	return netip.AddrPortFrom(netip.MustParseAddr(address), port).String()
}
