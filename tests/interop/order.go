package main

import (
	"fmt"
	"strconv"
	"sync"
)

// order is what section 2 says of which message may come when, and of what a message claims against what came before:
// of one control connection, in the eyes of whoever knows what both ends have said.
type order struct {
	mutex    sync.Mutex
	phase    string
	offered  uint64 // channels that the offer goes on with
	channels uint64 // that are announced
	most     uint64 // that the answer allows
	written  map[string]map[string]uint64
	receipts map[string]bool
}

func newOrder() *order {
	return &order{
		phase: "offering", receipts: map[string]bool{},
		written: map[string]map[string]uint64{"source": {}, "destination": {}},
	}
}

// following is the table: by phase and sender, the phase after each message that may come. What is not here may not.
var following = map[string]map[string]string{
	"offering source":          {"offer": "answering"},
	"answering source":         {"cancel": "cancelled"},
	"answering destination":    {"answer": "open", "refusal": "ended"},
	"open source":              {"open": "open", "ack": "open", "receipt": "open", "handover": "handing over", "cancel": "cancelled", "bye": "ended"},
	"open destination":         {"ack": "open", "receipt": "open", "cancel": "cancelled"},
	"handing over source":      {"ack": "handing over"},
	"handing over destination": {"ack": "handing over", "cancel": "handing over", "outcome": "settled"},
	"cancelled source":         {"cancel": "cancelled", "open": "cancelled", "ack": "cancelled", "handover": "handing over"},
	"cancelled destination":    {"cancel": "cancelled", "ack": "cancelled", "answer": "cancelled", "refusal": "ended", "outcome": "settled"},
	"settled source":           {"open": "settled", "handover": "settled", "cancel": "settled", "ack": "settled", "receipt": "settled", "bye": "ended"},
	"settled destination":      {"ack": "settled", "receipt": "settled"},
	"ended destination":        {"ack": "ended"},
}

// pass takes the next message. sent: how many frames the other end than its sender has sent, by channel.
func (o *order) pass(from string, m message, sent map[string]uint64) error {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	next, may := following[o.phase+" "+from][m.kind]
	if !may {
		return violation(fmt.Sprintf("%s from the %s while %s", m.kind, from, o.phase))
	}
	goesOn := m.counts("next")
	switch m.kind {
	case "offer":
		if len(goesOn) > 0 && (m.text("purpose") != "resume" || !areFirst(goesOn)) {
			return violation("an offer that names channels that it may not")
		}
		o.offered = uint64(len(goesOn))
	case "answer":
		if !areFirst(goesOn) || uint64(len(goesOn)) > o.offered {
			return violation("an answer with other channels than the first ones of the offer")
		}
		o.channels, o.most = uint64(len(goesOn)), m.number("max_channels")
	case "open":
		if m.number("channel") != o.channels || o.channels >= o.most {
			return violation("a channel out of order, or one too many")
		}
		o.channels++
	case "ack":
		if err := o.heed(from, m.counts("written"), sent); err != nil {
			return err
		}
	case "receipt":
		if o.receipts[from] || from == "destination" && !o.receipts["source"] {
			return violation("a second receipt, or one that answers none")
		}
		o.receipts[from] = true
	}
	o.phase = next
	return nil
}

func (o *order) heed(from string, written, sent map[string]uint64) error {
	for channel, count := range written {
		number, _ := strconv.ParseUint(channel, 10, 16)
		if number >= o.channels || count < o.written[from][channel] || count > sent[channel] {
			return violation("an ack that cannot be true")
		}
	}
	for channel, count := range written {
		o.written[from][channel] = count
	}
	return nil
}

// areFirst: whether the channels are the first ones, none left out.
func areFirst(counts map[string]uint64) bool {
	for number := range len(counts) {
		if _, there := counts[strconv.Itoa(number)]; !there {
			return false
		}
	}
	return true
}
