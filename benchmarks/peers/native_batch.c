/* An experiment: records move between topics in batches, in C, and Python sees only their values, one batch as one block of lines.
 *
 * It calls the librdkafka that confluent-kafka brings along, by the few prototypes declared here. One transaction a batch; keys are
 * passed on, a header is read from and written to every record, as the agents do it.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct rd_kafka_s rd_kafka_t;
typedef struct rd_kafka_conf_s rd_kafka_conf_t;
typedef struct rd_kafka_queue_s rd_kafka_queue_t;
typedef struct rd_kafka_topic_s rd_kafka_topic_t;
typedef struct rd_kafka_headers_s rd_kafka_headers_t;
typedef struct rd_kafka_error_s rd_kafka_error_t;
typedef struct rd_kafka_topic_partition_list_s rd_kafka_topic_partition_list_t;

typedef struct {
    int err;
    rd_kafka_topic_t *rkt;
    int32_t partition;
    void *payload;
    size_t len;
    void *key;
    size_t key_len;
    int64_t offset;
    void *private_;
} message_t;

typedef struct { /* the beginning of rd_kafka_topic_partition_t is all that is used */
    char *topic;
    int32_t partition;
    int64_t offset;
} place_t;

/* rd_kafka_vu_t: a tag and a union of 64 bytes */
typedef struct {
    int tag;
    union {
        const char *text;
        int32_t number;
        struct {
            void *ptr;
            size_t size;
        } mem;
        rd_kafka_headers_t *headers;
        int msgflags;
        char padding[64];
    } u;
} argument_t;

enum { V_TOPIC = 1, V_PARTITION = 3, V_VALUE = 4, V_KEY = 5, V_MSGFLAGS = 7, V_HEADERS = 10 };
enum { COPY = 2, QUEUE_FULL = -184, PARTITION_EOF = -191 };

extern rd_kafka_conf_t *rd_kafka_conf_new(void);
extern int rd_kafka_conf_set(rd_kafka_conf_t *, const char *, const char *, char *, size_t);
extern rd_kafka_t *rd_kafka_new(int, rd_kafka_conf_t *, char *, size_t);
extern rd_kafka_topic_partition_list_t *rd_kafka_topic_partition_list_new(int);
extern place_t *rd_kafka_topic_partition_list_add(rd_kafka_topic_partition_list_t *, const char *, int32_t);
extern int rd_kafka_topic_partition_list_set_offset(rd_kafka_topic_partition_list_t *, const char *, int32_t, int64_t);
extern int rd_kafka_assign(rd_kafka_t *, const rd_kafka_topic_partition_list_t *);
extern rd_kafka_queue_t *rd_kafka_queue_get_consumer(rd_kafka_t *);
extern ssize_t rd_kafka_consume_batch_queue(rd_kafka_queue_t *, int, message_t **, size_t);
extern void rd_kafka_message_destroy(message_t *);
extern int rd_kafka_message_headers(const message_t *, rd_kafka_headers_t **);
extern int rd_kafka_header_get_last(const rd_kafka_headers_t *, const char *, const void **, size_t *);
extern rd_kafka_headers_t *rd_kafka_headers_new(size_t);
extern rd_kafka_headers_t *rd_kafka_headers_copy(const rd_kafka_headers_t *);
extern int rd_kafka_header_add(rd_kafka_headers_t *, const char *, ssize_t, const void *, ssize_t);
extern rd_kafka_error_t *rd_kafka_produceva(rd_kafka_t *, const argument_t *, size_t);
extern int rd_kafka_error_code(const rd_kafka_error_t *);
extern const char *rd_kafka_error_string(const rd_kafka_error_t *);
extern void rd_kafka_error_destroy(rd_kafka_error_t *);
extern rd_kafka_error_t *rd_kafka_init_transactions(rd_kafka_t *, int);
extern rd_kafka_error_t *rd_kafka_begin_transaction(rd_kafka_t *);
extern rd_kafka_error_t *rd_kafka_commit_transaction(rd_kafka_t *, int);
extern int rd_kafka_poll(rd_kafka_t *, int);

#define LARGEST 10000

static rd_kafka_t *consumer, *producer;
static rd_kafka_queue_t *queue;
static rd_kafka_headers_t *header;
static message_t *batch[LARGEST], *got[LARGEST];
static size_t in_batch;
static char *block;
static size_t block_size, block_room;
static char problem[512];

const char *nb_problem(void) { return problem; }

static int failed(rd_kafka_error_t *error) {
    if (error == NULL) return 0;
    snprintf(problem, sizeof problem, "%s", rd_kafka_error_string(error));
    rd_kafka_error_destroy(error);
    return -1;
}

/* settings: name, value, name, value, ... */
static rd_kafka_t *client(int type, const char **settings, int count) {
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    for (int i = 0; i + 1 < count; i += 2)
        if (rd_kafka_conf_set(conf, settings[i], settings[i + 1], problem, sizeof problem) != 0) return NULL;
    return rd_kafka_new(type, conf, problem, sizeof problem);
}

int nb_open(const char **reading, int reading_count, const char **writing, int writing_count, const char *topic, int partitions) {
    consumer = client(1, reading, reading_count);
    producer = client(0, writing, writing_count);
    if (consumer == NULL || producer == NULL) return -1;
    rd_kafka_topic_partition_list_t *places = rd_kafka_topic_partition_list_new(partitions);
    for (int p = 0; p < partitions; p++) {
        rd_kafka_topic_partition_list_add(places, topic, p);
        rd_kafka_topic_partition_list_set_offset(places, topic, p, 0);
    }
    if (rd_kafka_assign(consumer, places) != 0) return -1;
    queue = rd_kafka_queue_get_consumer(consumer);
    header = rd_kafka_headers_new(1);
    rd_kafka_header_add(header, "writer", -1, "bench/0123456789abcdef/1", -1);
    return failed(rd_kafka_init_transactions(producer, 30000));
}

int nb_begin(void) { return failed(rd_kafka_begin_transaction(producer)); }

int nb_commit(void) { return failed(rd_kafka_commit_transaction(producer, 60000)); }

/* Reads up to LARGEST records; their values, a line each, are at *values then. */
int nb_read(const char **values, size_t *size) {
    ssize_t count = rd_kafka_consume_batch_queue(queue, 30, got, LARGEST);
    if (count < 0) return -1;
    in_batch = block_size = 0;
    for (ssize_t i = 0; i < count; i++) {
        message_t *m = got[i];
        rd_kafka_headers_t *headers;
        const void *writer;
        size_t writer_size;
        if (m->err != 0) {
            int code = m->err;
            rd_kafka_message_destroy(m);
            if (code == PARTITION_EOF) continue;
            snprintf(problem, sizeof problem, "consumer error %d", code);
            return -1;
        }
        if (rd_kafka_message_headers(m, &headers) != 0 || rd_kafka_header_get_last(headers, "factory-writer", &writer, &writer_size) != 0 ||
            writer_size != 12 || memcmp(writer, "bench/fill/0", 12) != 0) {
            rd_kafka_message_destroy(m);
            continue;
        }
        if (block_size + m->len + 1 > block_room) {
            block_room = 2 * (block_size + m->len + 1);
            block = realloc(block, block_room);
        }
        memcpy(block + block_size, m->payload, m->len);
        block_size += m->len;
        block[block_size++] = '\n';
        batch[in_batch++] = m;
    }
    *values = block;
    *size = block_size;
    return (int)in_batch;
}

/* Writes a line for each record of the batch, to its partition and under its key. */
int nb_write(const char *topic, const char *lines, size_t size) {
    const char *at = lines, *end = lines + size;
    for (size_t i = 0; i < in_batch; i++) {
        const char *stop = memchr(at, '\n', end - at);
        if (stop == NULL) {
            snprintf(problem, sizeof problem, "fewer lines than records");
            return -1;
        }
        argument_t arguments[6] = {{V_TOPIC}, {V_PARTITION}, {V_VALUE}, {V_KEY}, {V_MSGFLAGS}, {V_HEADERS}};
        arguments[0].u.text = topic;
        arguments[1].u.number = batch[i]->partition;
        arguments[2].u.mem.ptr = (void *)at;
        arguments[2].u.mem.size = stop - at;
        arguments[3].u.mem.ptr = batch[i]->key;
        arguments[3].u.mem.size = batch[i]->key_len;
        arguments[4].u.msgflags = COPY;
        for (;;) {
            arguments[5].u.headers = rd_kafka_headers_copy(header); /* the client's from here on, if it takes the record */
            rd_kafka_error_t *error = rd_kafka_produceva(producer, arguments, 6);
            if (error == NULL) break;
            if (rd_kafka_error_code(error) != QUEUE_FULL) return failed(error);
            rd_kafka_error_destroy(error);
            rd_kafka_poll(producer, 50);
        }
        rd_kafka_message_destroy(batch[i]);
        at = stop + 1;
    }
    return 0;
}
