package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"eboot"
	"eboot/internal/agent"
	"eboot/internal/fsutil"
)

// The verbs of this file work on the data directory of a server that is stopped: they
// are for when there is no server left to ask.

// dataDirFlag adds --data-dir and returns how to read it.
func dataDirFlag(cmd *cobra.Command) func() (string, error) {
	dir := cmd.Flags().String("data-dir", "", "data directory of a server that is stopped (data_dir of its configuration)")
	return func() (string, error) {
		if *dir == "" {
			return "", fmt.Errorf("--data-dir: name the data directory of the server: %w", eboot.ErrInvalid)
		}
		_, err := os.Stat(*dir)
		return *dir, err
	}
}

func (c *command) clusterRecover() *cobra.Command {
	var peers string
	var accept bool
	cmd := &cobra.Command{
		Use:   "recover --data-dir DIR [--peers FILE --accept-data-loss]",
		Short: "When a majority is lost for good: show how much a stopped server knows, or make a list of servers its cluster",
		Args:  arguments(0, 0),
	}
	dataDir := dataDirFlag(cmd)
	cmd.Flags().StringVar(&peers, "peers", "", `JSON list of the servers that are the cluster from then on, best the one alone that knows the most: [{"id": …, "address": "HOST:PORT", "non_voter": false}]`)
	cmd.Flags().BoolVar(&accept, "accept-data-loss", false, "writes that only the lost servers had are lost")
	cmd.RunE = func(*cobra.Command, []string) error {
		dir, err := dataDir()
		if err != nil {
			return err
		}
		if peers == "" {
			if accept {
				return fmt.Errorf("--accept-data-loss: goes with --peers FILE, which names the servers that are the cluster from then on: %w", eboot.ErrInvalid)
			}
			return c.printInspection(dir)
		}
		servers, err := readPeers(peers)
		if err != nil {
			return err
		}
		if !accept {
			return fmt.Errorf("recover: writes that only the lost servers had would be lost, and must not come back: "+
				"bring a majority back instead if you can, else repeat this with --accept-data-loss: %w", eboot.ErrInvalid)
		}
		logger := hclog.New(&hclog.LoggerOptions{Name: "eboot", Output: c.err, Level: hclog.Warn})
		if err := agent.RecoverDataDir(dir, servers, logger); err != nil {
			return err
		}
		if err := c.printInspection(dir); err != nil || c.json() {
			return err
		}
		return c.printRecovered(len(servers))
	}
	return cmd
}

// printRecovered says what comes next. Of several that are recovered together two may know
// less than a third and elect one of themselves.
func (c *command) printRecovered(servers int) error {
	next := "recovered; start it, then run `eboot cluster reset` on the other servers that are left and start them: they join"
	if servers > 1 {
		next = "recovered; do the same on every server of the list before one of them is started; what only some of them know may be lost, " +
			"unless you recover the one that knows the most alone and run `eboot cluster reset` on the others"
	}
	_, err := fmt.Fprintln(c.out, next)
	return err
}

func (c *command) printInspection(dir string) error {
	i, err := agent.InspectDataDir(dir)
	if err != nil {
		return err
	}
	return c.print(i, func(w io.Writer) error {
		snapshot := "none"
		if i.SnapshotIndex > 0 {
			snapshot = fmt.Sprintf("index %d, term %d", i.SnapshotIndex, i.SnapshotTerm)
		}
		if err := fields(w, [][2]string{
			{"server", i.ID},
			{"cluster", dash(i.Cluster)},
			{"log", fmt.Sprintf("index %d, term %d", i.LastIndex, i.LastTerm)},
			{"snapshot", snapshot},
		}...); err != nil {
			return err
		}
		rows := make([][]string, len(i.Servers))
		for n, m := range i.Servers {
			rows[n] = []string{m.ID, m.Address, yesNo(m.Voter)}
		}
		return table(w, "SERVER ADDRESS VOTER", rows)
	})
}

// recoveredServer is an element of the list of --peers; the format is that of
// hashicorp/raft's peers.json.
type recoveredServer struct {
	ID       string `json:"id"`
	Address  string `json:"address"`
	NonVoter bool   `json:"non_voter"`
}

// readPeers reads the list of --peers. eboot.ErrInvalid says what is wrong with it, and
// eboot.ErrTooLarge that it is no such list.
func readPeers(path string) ([]eboot.Member, error) {
	data, err := fsutil.ReadSmall(path, maxFile)
	if err != nil {
		return nil, err
	}
	servers, err := parsePeers(data)
	if err != nil {
		return nil, fmt.Errorf("--peers %s: %w", path, err)
	}
	return servers, nil
}

func parsePeers(data []byte) ([]eboot.Member, error) {
	var list []recoveredServer
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&list); err != nil {
		return nil, fmt.Errorf("%v; want a JSON list of {\"id\", \"address\", \"non_voter\"}: %w", err, eboot.ErrInvalid)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("more than one JSON value: %w", eboot.ErrInvalid)
	}
	voters := 0
	seen := map[string]bool{}
	servers := make([]eboot.Member, len(list))
	for i, s := range list {
		if err := eboot.CheckName("id", s.ID); err != nil {
			return nil, fmt.Errorf("server %d of the list: %w", i+1, err)
		}
		host, port, err := net.SplitHostPort(s.Address)
		if err != nil || host == "" || port == "" {
			return nil, fmt.Errorf("server %s: address %q: want HOST:PORT of its peer port: %w", s.ID, s.Address, eboot.ErrInvalid)
		}
		if seen[s.ID] || seen[s.Address] {
			return nil, fmt.Errorf("server %s (%s): its id or its address is in the list twice: %w", s.ID, s.Address, eboot.ErrInvalid)
		}
		seen[s.ID], seen[s.Address] = true, true
		servers[i] = eboot.Member{ID: s.ID, Address: s.Address, Voter: !s.NonVoter}
		if !s.NonVoter {
			voters++
		}
	}
	if voters == 0 {
		return nil, fmt.Errorf("no server of the list votes: %w", eboot.ErrInvalid)
	}
	return servers, nil
}

func (c *command) clusterReset() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "reset --data-dir DIR [--yes]",
		Short: "Make a stopped server a new one: its id, raft log and serving cache go, its blobs stay",
		Args:  arguments(0, 0),
	}
	dataDir := dataDirFlag(cmd)
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		dir, err := dataDir()
		if err != nil {
			return err
		}
		was, err := agent.InspectDataDir(dir)
		switch {
		case errors.Is(err, eboot.ErrConflict), errors.Is(err, eboot.ErrNotFound):
			return err
		case err != nil: // a reset is a way out of that
			c.warn(err.Error())
		}
		if !yes {
			if err := c.confirmReset(cmd.Context(), dir, was); err != nil {
				return err
			}
		}
		if err := agent.ResetDataDir(dir); err != nil {
			return err
		}
		return c.print(was, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "server %s is no more; %s makes a new one when it starts.\n"+
				"If the cluster still has the old one: `eboot cluster remove --replace %s` there, or without --replace at another address.\n", dash(was.ID), dir, dash(was.ID))
			return err
		})
	}
	return cmd
}

func (c *command) confirmReset(ctx context.Context, dir string, was agent.Inspection) error {
	if !term.IsTerminal(int(c.in.Fd())) {
		return fmt.Errorf("reset: nobody to ask whether %s may lose its id and its log; say --yes: %w", dir, eboot.ErrInvalid)
	}
	fmt.Fprintf(c.err, "%s: server %s loses its id, its raft log (up to index %d) and its serving cache; blobs stay. Go on? [y/N] ", dir, dash(was.ID), was.LastIndex)
	answer, err := readLine(ctx, c.in)
	if err != nil {
		return err
	}
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
		fmt.Fprintln(c.err, "nothing was done")
		return errNegative
	}
	return nil
}

// readLine reads one short line from a terminal; an interrupt ends it.
func readLine(ctx context.Context, f *os.File) (string, error) {
	const poll = 100 * time.Millisecond
	buffer := make([]byte, 256) // a terminal delivers whole lines
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(poll.Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR) || err == nil && n == 0:
			continue
		case err != nil:
			return "", fmt.Errorf("read answer: %w", err)
		}
		k, err := f.Read(buffer)
		if err != nil && !errors.Is(err, io.EOF) {
			return "", fmt.Errorf("read answer: %w", err)
		}
		return string(buffer[:k]), nil
	}
}
